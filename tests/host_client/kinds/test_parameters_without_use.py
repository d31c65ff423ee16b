"""Kind H: parameters that a batch does not use have zero columns, and an optimizer leaves them where they are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from host_client.curvature import Capture, UnsupportedLayer
from tests.host_client.kinds.experts import Experts, Weighted
from tests.host_client.kinds.reference import (
    Term,
    assert_curvature,
    assert_same,
    captured,
    classes,
    double,
    gauss_newton,
)

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")


class Dropped(nn.Module):
    """Layer drop: each residual block is left out in some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 3)

    def forward(self, x: Tensor, turn: int) -> Weighted:
        """Logits and their weight in the loss."""
        for number, block in enumerate(self.blocks):
            if (turn + number) % 3:
                x = x + block(x).tanh()
        return [(self.head(x), 1.0)]


class Turns(nn.Module):
    """One body with a head for each task, by turns."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(4, 5), nn.ModuleList(nn.Linear(5, 3) for _ in range(2))

    def forward(self, x: Tensor, turn: int) -> Weighted:
        """Logits and their weight in the loss."""
        return [(self.heads[turn % 2](self.body(x).tanh()), 1.0)]


class Auxiliary(nn.Module):
    """A head on the hidden state with 0.4 of the weight, as in Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aux, self.second, self.head = (
            nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 5), nn.Linear(5, 3),
        )  # fmt: skip

    def forward(self, x: Tensor, turn: int) -> Weighted:
        """Logits and their weights in the loss."""
        h = self.first(x).tanh()
        return [(self.head(self.second(h).tanh()), 1.0), (self.aux(h), 0.4)]


class Deep(nn.Module):
    """Deep supervision: a list of logits with weights of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

    def forward(self, x: Tensor, turn: int) -> Weighted:
        """Logits and their weights in the loss."""
        out = []
        for block, head, weight in zip(self.blocks, self.heads, (0.25, 0.5, 1.0), strict=True):
            x = block(x).tanh()
            out.append((head(x), weight))
        return out


class Spare(nn.Module):
    """A module that is never called, one whose output nobody uses, and one that is called without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.unread, self.teacher = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 4)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, turn: int) -> Weighted:
        """Logits and their weight in the loss."""
        _ = self.unread(x)
        with torch.no_grad():
            shift = self.teacher(x)
        return [(self.head((self.body(x) + shift).tanh()), 1.0)]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "layer drop": Dropped,
    "an expert that is not called": Experts,
    "an expert that is called without tokens": lambda: Experts(call_empty=True),
    "heads by turns": Turns,
    "auxiliary head": Auxiliary,
    "weighted list of outputs": Deep,
    "spare modules": Spare,
}


def _loss(criterion: nn.Module, outputs: Weighted, y: Tensor) -> Tensor:
    total: Tensor = sum(weight * criterion(z, y) for z, weight in outputs)  # type: ignore[assignment]
    return total


def _expected(twin: nn.Module, x: Tensor, y: Tensor, turn: int) -> Tensor:
    terms: list[Term] = [(z, lambda z, w=w: w * F.cross_entropy(z, y)) for z, w in twin(x, turn)]  # type: ignore[misc]
    return gauss_newton(terms, list(twin.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_what_a_batch_does_not_use_has_zero_columns(name: str) -> None:
    model = MODELS[name]().double()
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    for turn in range(3):
        x, y = double(6, 4, seed=turn), classes(6)
        f = captured(capture, _loss(criterion, model(x, turn), y))
        assert_same(f, _expected(twin, x, y, turn), model)


@pytest.mark.parametrize("name", ["layer drop", "an expert that is not called", "heads by turns", "spare modules"])
def test_gradients_of_each_sample_where_some_parameters_rest(name: str) -> None:
    batches = [((double(6, 4, seed=turn), turn), classes(6)) for turn in range(3)]
    assert_curvature(MODELS[name]().double(), batches, lambda m, x: m(*x)[0][0], kind="empirical")


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("where", ["in between", "first", "sequential"])
def test_a_reentrant_checkpoint_is_refused_by_name(where: str, kind: str) -> None:
    """Its parameters only seem to be without use: zero columns for them would be silently wrong."""

    class Checkpointed(nn.Module):
        """A body that is computed again in the backward pass."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Identity() if where == "first" else nn.Linear(4, 4)
            self.body, self.head = nn.Sequential(nn.Linear(4, 5)), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            """Logits of shape (b, 3)."""
            h = self.first(x)
            if where == "sequential":
                h = checkpoint_sequential(nn.Sequential(self.body, nn.Tanh()), 2, h, use_reentrant=True)
            else:
                h = checkpoint(self.body, h, use_reentrant=True).tanh()
            logits: Tensor = self.head(h.sin())
            return logits

    model, criterion = Checkpointed().double(), nn.CrossEntropyLoss()
    capture = Capture(model, criterion, curvature=kind)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedLayer, match=r"(?s)body.*use_reentrant=False"):
        captured(capture, criterion(model(double(6, 4).requires_grad_()), classes(6)))
