"""The autograd graph behind a criterion's input: what a backward pass would do, read without running one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

LEAF = "torch::autograd::AccumulateGrad"
"""Name of the node of a leaf."""

REENTRANT = "CheckpointFunctionBackward"
"""Name of the node of a reentrant checkpoint, whose backward function runs a backward pass of its own."""


class Call:
    """One recorded call of a differentiable function, or a leaf.

    Attributes:
        node: its node in the autograd graph.
        name: of the node, such as ``"AddmmBackward0"``.
        outputs: shape of each output.
        empty: whether an output has no entries, such as that of an expert without tokens.
        edges: for each differentiable argument, the call that made it and which of that call's outputs it is; None
            where no trained parameter lies behind it.
        parameter: index of the trained parameter, for a leaf; None for a function.
    """

    __slots__ = ("_metadata", "edges", "empty", "name", "node", "outputs", "parameter")

    def __init__(self, node: Node, name: str) -> None:
        self.node, self.name, self._metadata = node, name, node._input_metadata
        self.outputs = [torch.Size(m.shape) for m in self._metadata]
        self.empty = any([0 in shape for shape in self.outputs])  # noqa: C419 - a generator takes twice as long
        self.edges: list[Place | None] = []
        self.parameter: int | None = None

    @property
    def dtypes(self) -> list[torch.dtype]:
        """Dtype of each output."""
        return [m.dtype for m in self._metadata]

    def argument(self, edge: int) -> torch.Size:
        """Shape of a differentiable argument."""
        call, number = self.behind(edge)
        return call.outputs[number]

    def behind(self, edge: int) -> Place:
        """The call that made an argument, and the number of its output."""
        place = self.edges[edge]
        assert place is not None
        return place

    def saves(self, name: str) -> bool:
        """Return whether the function has a saved value of this name."""
        return hasattr(self.node, f"_saved_{name}")

    def saved(self, name: str) -> object:
        """A value that the function has saved for its derivative."""
        return getattr(self.node, f"_saved_{name}")

    def saved_tensor(self, name: str) -> Tensor:
        """A tensor that the function has saved for its derivative, without its graph."""
        value = getattr(self.node, f"_saved_{name}")
        assert isinstance(value, Tensor)
        return value.detach()

    def differentiate(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the cotangents of the arguments for those of the outputs, by the function's own derivative.

        The node is called directly, not by the engine, so no hook of anybody sees it. What the engine does after a
        call is done here: cotangents of broadcast arguments are summed, and have the argument's dtype.
        """
        node = self.node
        if isinstance(node, BackwardCFunction):
            found = self._differentiate_python(node, cotangents)
        else:
            found = _tuple(node(*cotangents))  # type: ignore[operator]
        return [
            None
            if place is None or value is None
            else fit(value, place[0].outputs[place[1]], place[0].dtypes[place[1]])
            for place, value in zip(self.edges, found, strict=True)
        ]

    def _differentiate_python(
        self, node: BackwardCFunction, cotangents: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        """Call the backward function of a `torch.autograd.Function`, which has an entry for every argument."""
        example = next(cotangent for cotangent in cotangents if cotangent is not None)
        filled = [
            torch.zeros(shape, dtype=dtype, device=example.device) if one is None else one
            for one, shape, dtype in zip(cotangents, self.outputs, self.dtypes, strict=True)
        ]
        found = node.apply(*filled)
        values = iter([v for v, needed in zip(_tuple(found), node.needs_input_grad, strict=False) if needed])
        return [None if target is None else next(values) for target, _ in node.next_functions]


Place: TypeAlias = tuple[Call, int]
"""A call and the number of one of its outputs: where cotangents arrive."""


class Graph:
    """The calls that lie between some tensors and the trained parameters.

    Args:
        roots: tensors with a graph.
        parameters: index of each trained parameter, by its id.

    Attributes:
        calls: each call after those that have used its outputs.
        roots: where the cotangents of `roots` arrive.
        used: indices of the trained parameters that are reached.
        reentrant: whether a reentrant checkpoint hides parameters: they get gradients, and do not show in the graph.
    """

    def __init__(self, roots: Sequence[Tensor], parameters: Mapping[int, int]) -> None:
        calls: dict[Node, Call | None] = {}  # None: no trained parameter lies behind it
        order: list[Call] = []
        self.reentrant = False
        for root in roots:
            if root.grad_fn is not None:
                self._visit(root.grad_fn, parameters, calls, order)
        self.calls = order[::-1]
        self.roots: list[Place | None] = []
        for root in roots:
            call = None if root.grad_fn is None else calls[root.grad_fn]
            self.roots.append(None if call is None else (call, root.output_nr))
        self.used = {call.parameter for call in order if call.parameter is not None}

    def _visit(
        self, root: Node, parameters: Mapping[int, int], calls: dict[Node, Call | None], order: list[Call]
    ) -> None:
        """Add the calls behind a node in the order in which depth-first search leaves them."""
        todo: list[tuple[Node, str, tuple[tuple[Node | None, int], ...]]] = [(root, "", ())]
        while todo:
            node, name, arguments = todo.pop()
            if arguments:  # all that lies behind them has been visited
                edges: list[Place | None] = []
                for argument, number in arguments:
                    behind = None if argument is None else calls[argument]
                    edges.append(None if behind is None else (behind, number))
                if any(edges):
                    call = Call(node, name)
                    call.edges = edges
                    calls[node] = call
                    order.append(call)
                continue
            if node in calls:
                continue
            calls[node] = None
            name = node.name()
            if name == LEAF:
                index = parameters.get(id(node.variable))  # type: ignore[attr-defined]
                if index is not None:
                    calls[node] = call = Call(node, name)
                    call.parameter = index
                    order.append(call)
                continue
            self.reentrant |= name == REENTRANT
            arguments = node.next_functions
            todo.append((node, name, arguments))
            todo += [(argument, "", ()) for argument, _ in arguments if argument is not None]


def fit_at(place: Place, cotangent: Tensor) -> Tensor:
    """Give a cotangent the shape and dtype of the argument that it belongs to."""
    call, number = place
    return fit(cotangent, call.outputs[number], call.dtypes[number])


def fit(cotangent: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Sum a cotangent over the dimensions in which its argument was broadcast, and convert it to its dtype."""
    if cotangent.is_sparse:
        cotangent = cotangent.to_dense()
    if cotangent.shape != shape:
        extra = cotangent.dim() - len(shape)
        dims = [d for d in range(cotangent.dim()) if d < extra or (shape[d - extra] == 1 and cotangent.shape[d] != 1)]
        cotangent = cotangent.sum(dims, keepdim=True).reshape(shape) if dims else cotangent.reshape(shape)
    return cotangent if cotangent.dtype == dtype else cotangent.to(dtype)


def _tuple(value: object) -> tuple[Tensor | None, ...]:
    return value if isinstance(value, tuple) else (value,)
