"""Graphs of several sizes in one tensor, pooled in all the ways in which libraries of graphs and users do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.host_client.kinds.reference import assert_curvature, classes, double

Sizes = Sequence[int]
ROUNDS: tuple[Sizes, ...] = ((4, 4, 4), (2, 4, 6), (6, 5, 1))
"""Nodes in each of three graphs, by turns."""


def _graph(sizes: Sizes) -> Tensor:
    return torch.repeat_interleave(torch.tensor(sizes))


def bounds(sizes: Sizes) -> list[tuple[int, int]]:
    ends = list(accumulate(sizes))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _membership(sizes: Sizes) -> Tensor:
    return F.one_hot(_graph(sizes)).T.double()


def _interleaved(sizes: Sizes) -> Tensor:
    """The graph of each node, the graphs by turns while they have nodes left."""
    return torch.tensor([g for step in range(max(sizes)) for g, size in enumerate(sizes) if step < size])


def _scatter(h: Tensor, sizes: Sizes) -> Tensor:
    index = _graph(sizes)[:, None].expand_as(h)
    return h.new_zeros(len(sizes), h.shape[1]).scatter_add(0, index, h)


def _scatter_reduce(h: Tensor, sizes: Sizes) -> Tensor:
    index = _graph(sizes)[:, None].expand_as(h)
    return h.new_zeros(len(sizes), h.shape[1]).scatter_reduce(0, index, h, "mean", include_self=False)


def _cumulative(h: Tensor, sizes: Sizes) -> Tensor:
    """Sums as differences of a running sum: a cotangent reaches rows of other graphs and cancels there."""
    sums = torch.cat([h.new_zeros(1, h.shape[1]), h.cumsum(0)])
    start, end = (torch.tensor(side) for side in zip(*bounds(sizes), strict=True))
    return sums[end] - sums[start]


POOLS: dict[str, Callable[[Tensor, Sizes], Tensor]] = {
    "index_add": lambda h, sizes: h.new_zeros(len(sizes), h.shape[1]).index_add(0, _graph(sizes), h),
    "index_add of graphs by turns": lambda h, sizes: h.new_zeros(len(sizes), h.shape[1]).index_add(
        0, _interleaved(sizes), h
    ),
    "scatter_add": _scatter,
    "scatter_reduce": _scatter_reduce,
    "split by lengths": lambda h, sizes: torch.stack([part.mean(0) for part in h.split(list(sizes))]),
    "tensor_split": lambda h, sizes: torch.stack(
        [p.sum(0) for p in h.tensor_split([end for _, end in bounds(sizes)][:-1])]
    ),
    "dense matrix": lambda h, sizes: _membership(sizes) @ h,
    "einsum with a matrix": lambda h, sizes: torch.einsum("gn,nd->gd", _membership(sizes), h),
    "sparse matrix": lambda h, sizes: torch.sparse.mm(_membership(sizes).to_sparse(), h),
    "segment_reduce": lambda h, sizes: torch.segment_reduce(h, "sum", lengths=torch.tensor(sizes), axis=0),
    "slices": lambda h, sizes: torch.stack([h[start:end].sum(0) for start, end in bounds(sizes)]),
    "slices with tuples": lambda h, sizes: torch.cat(
        [h[(slice(*b), slice(None))].sum(0, keepdim=True) for b in bounds(sizes)]
    ),
    "padding": lambda h, sizes: nn.utils.rnn.pad_sequence(list(h.split(list(sizes))), batch_first=True).sum(1),
    "narrow": lambda h, sizes: torch.stack([h.narrow(0, a, b - a).sum(0) for a, b in bounds(sizes)]),
    "masks": lambda h, sizes: torch.stack([h[_graph(sizes) == g].mean(0) for g in range(len(sizes))]),
    "masked maximum": lambda h, sizes: torch.stack([h[_graph(sizes) == g].amax(0) for g in range(len(sizes))]),
    "running sum": _cumulative,
    "index_put": lambda h, sizes: h.new_zeros(len(sizes), h.shape[1]).index_put((_graph(sizes),), h, accumulate=True),
}


class Pooled(nn.Module):
    """Logits of graphs from the nodes of all of them, one after another in one tensor."""

    def __init__(self, pool: Callable[[Tensor, Sizes], Tensor]) -> None:
        super().__init__()
        self.body, self.head, self.pool = nn.Linear(3, 4), nn.Linear(4, 3), pool

    def forward(self, x: Tensor, sizes: Sizes) -> Tensor:
        """Logits of shape (graphs, 3) from nodes of shape (nodes, 3)."""
        logits: Tensor = self.head(self.pool(self.body(x).tanh(), sizes))
        return logits


def assert_pooled(name: str, **options: Any) -> None:
    """Assert that F is right for graphs of other sizes in each of three passes.

    Args:
        name: one of `POOLS`.
        options: of `assert_curvature`.
    """
    batches = [((double(12, 3, seed=seed), sizes), classes(3)) for seed, sizes in enumerate(ROUNDS)]
    assert_curvature(Pooled(POOLS[name]).double(), batches, lambda m, x: m(*x), **options)
