"""The autograd graph behind a tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node

Place = tuple[Node, int] | int
"""Where a gradient arrives: a node and the number of its output, or the id of a leaf."""


@dataclass(frozen=True)
class Graph:
    """What a backward pass from a tensor would reach.

    Attributes:
        nodes: every node.
        arrivals: how many gradients are added up at each place.
    """

    nodes: set[Node]
    arrivals: Counter[Place]


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


def place_of(tensor: Tensor) -> Place:
    """Where the gradient of a tensor that requires one arrives."""
    return id(tensor) if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)
