"""The autograd graph behind a tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

Place = tuple[Node, int] | int
"""Where a gradient arrives: a node and the number of its output, or the id of a leaf."""


PICKING = {
    "GatherBackward0",
    "IndexBackward0",
    "IndexPutBackward0",
    "IndexSelectBackward0",
    "MaskedScatterBackward0",
    "MaskedSelectBackward0",
    "ScatterBackward0",
    "TakeBackward0",
}
"""Functions of which values decide what goes where."""


@dataclass(frozen=True)
class Graph:
    """What a backward pass from a tensor would reach.

    Attributes:
        nodes: every node.
        arrivals: how many gradients are added up at each place.
    """

    nodes: set[Node]
    arrivals: Counter[Place]

    def scrambles(self, harmless: Collection[Node]) -> bool:
        """Whether the values of a batch may decide where its samples go; waits for an accelerator if one must look.

        Args:
            harmless: nodes of functions of parameters alone.
        """
        return any(
            type(node).__name__ in PICKING and node not in harmless and not _picks_within_samples(node)
            for node in self.nodes
        )


def graph_of(z: Tensor) -> Graph:
    """The graph behind `z`, which has one. Takes about a microsecond an edge."""
    assert z.grad_fn is not None
    nodes: set[Node] = {z.grad_fn}
    arrivals: Counter[Place] = Counter()
    todo = [z.grad_fn]
    while todo:
        for node, number in todo.pop().next_functions:
            if node is None:
                continue
            if type(node).__name__ == "AccumulateGrad":
                arrivals[id(node.variable)] += 1  # type: ignore[attr-defined]
                continue
            arrivals[node, number] += 1
            if node not in nodes:
                nodes.add(node)
                todo.append(node)
    return Graph(nodes, arrivals)


def _picks_within_samples(node: Node) -> bool:
    """Whether it is ``x[torch.arange(b), …]``: something of each sample, in the order of the samples."""
    indices = getattr(node, "_saved_indices", None)
    if not indices or indices[0] is None or indices[0].dtype == torch.bool:
        return False
    first = indices[0].flatten()
    return torch.equal(first, torch.arange(len(first), device=first.device, dtype=first.dtype))


def place_of(tensor: Tensor) -> Place:
    """Where the gradient of a tensor that requires one arrives."""
    return id(tensor) if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)
