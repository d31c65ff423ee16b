"""Kind A: which row belongs to which sample changes from one pass to the next.

Routes come from index tensors, lengths, matrices, slices and masks, not from names of functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client.curvature import Capture
from tests.host_client.kinds.pooling import POOLS, ROUNDS, Sizes, assert_pooled, bounds
from tests.host_client.kinds.reference import (
    assert_curvature,
    assert_same,
    captured,
    classes,
    double,
    of_cross_entropy,
)

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")


@pytest.mark.parametrize("name", POOLS)
def test_graphs_of_other_sizes_pooled(name: str) -> None:
    assert_pooled(name)


@pytest.mark.parametrize("check", ["first", "always", "never"])
@pytest.mark.parametrize("name", ["index_add", "dense matrix"])
def test_graphs_of_other_sizes_however_often_the_curvature_is_checked(name: str, check: str) -> None:
    assert_pooled(name, check=check)


@pytest.mark.parametrize("name", ["index_add", "split by lengths", "dense matrix"])
def test_gradients_of_graphs_of_other_sizes(name: str) -> None:
    assert_pooled(name, kind="empirical")


class Bags(nn.Module):
    """Sums of the embeddings of bags of tokens, which offsets divide into samples."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.projection, self.head = nn.Embedding(5, 3), nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor, sizes: Sizes) -> Tensor:
        """Logits of shape (bags, 3)."""
        h = self.projection(self.tokens(tokens)).tanh()
        offsets = torch.tensor([start for start, _ in bounds(sizes)])
        pooled = F.embedding_bag(torch.arange(len(h)), h, offsets, mode="sum")
        logits: Tensor = self.head(pooled)
        return logits


def test_bags_with_other_offsets() -> None:
    batches = [((torch.arange(12) * 7 % 5, sizes), classes(3)) for sizes in ROUNDS]
    assert_curvature(Bags().double(), batches, lambda m, x: m(*x))


class Spread(nn.Module):
    """A vector for each graph added to the hidden state of each of its nodes: the route from few rows to many."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.node, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, graphs: Tensor, sizes: Sizes) -> Tensor:
        """Logits of shape (graphs, 3)."""
        h = self.node(x) + self.graph(graphs).repeat_interleave(torch.tensor(sizes), 0)
        logits: Tensor = self.head(torch.stack([part.mean(0) for part in h.tanh().split(list(sizes))]))
        return logits


def test_vectors_of_graphs_spread_over_their_nodes() -> None:
    batches = [
        ((double(12, 3, seed=seed), double(3, 3, seed=seed + 9), sizes), classes(3))
        for seed, sizes in enumerate(ROUNDS)
    ]
    assert_curvature(Spread().double(), batches, lambda m, x: m(*x))


class Gated(nn.Module):
    """Adds what mixes the samples, times a gate that begins at zero, as a residual branch of ReZero does."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head, self.mix = nn.Linear(3, 4), nn.Linear(4, 3), mix
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (b, 3)."""
        h = self.body(x).tanh()
        logits: Tensor = self.head(h + self.gate * self.mix(h))
        return logits


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean of the batch": lambda h: h.mean(0, keepdim=True).expand_as(h),
    "neighbour": lambda h: h.roll(1, 0),
    "attention between samples": lambda h: (h @ h.T).softmax(1) @ h,
}


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("name", MIXES)
def test_samples_that_mix_only_once_a_gate_has_opened(name: str, kind: str) -> None:
    model = Gated(MIXES[name]).double()
    criterion = nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature=kind)  # type: ignore[arg-type]
    x, y = double(4, 3), classes(4)
    for gate in (0.0, 0.7):
        with torch.no_grad():
            model.gate.fill_(gate)
        twin = copy.deepcopy(model)
        expected = of_cross_entropy(twin(x), y, twin, kind)
        assert_same(captured(capture, criterion(model(x), y)), expected, model)
        model.zero_grad()
        capture.forget_gradients()


def test_experts_that_get_other_tokens() -> None:
    """A mixture of experts: an index tensor sends each token to one of two, and to others in the next pass."""

    class Experts(nn.Module):
        """Two experts of tokens (b, s, 3)."""

        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(3, 4) for _ in range(2))
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
            """Logits of shape (b, 3)."""
            flat, out = x.flatten(0, 1), x.new_zeros(x.shape[0] * x.shape[1], 4)
            for number, expert in enumerate(self.experts):
                rows = (chosen.flatten() == number).nonzero()[:, 0]
                out = out.index_add(0, rows, expert(flat[rows]).tanh())
            logits: Tensor = self.head(out.view(*x.shape[:2], 4).sum(1))
            return logits

    routes = (
        torch.tensor([[0, 1], [0, 1], [0, 1]]),
        torch.tensor([[0, 0], [1, 1], [0, 1]]),
        torch.tensor([[1, 1], [1, 0], [0, 0]]),
    )
    batches = [((double(3, 2, 3, seed=seed), chosen), classes(3)) for seed, chosen in enumerate(routes)]
    assert_curvature(Experts().double(), batches, lambda m, x: m(*x))
