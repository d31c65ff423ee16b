"""The columns of cotangents that a loss sends down: its Hessian's square root, for all samples at once."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Size, Tensor

from host_client.curvature.axis import WHOLE, Axis
from host_client.curvature.graph import Graph
from host_client.curvature.losses import LossCall

VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")


def ways_to_group(loss: LossCall, graph: Graph, *, further: bool) -> list[list[Axis]]:
    """Return where the samples may lie in the outputs of a model, the usual way first.

    A loss is a sum over elements, so any grouping of them into samples gives the same F; but only where the samples do
    not mix does a column hold something of each. The leading dimension comes first; then, where it was made by joining
    dimensions (``view(-1, classes)``), those; then the further dimensions.

    Args:
        loss: the loss.
        graph: behind its outputs.
        further: whether other dimensions count than the leading one, or the first of those that it was joined from.

    Returns:
        Axes of the outputs, for each way.
    """
    shape = loss.element_shape
    if not shape:
        return [[Axis(WHOLE, 1, 0, 1) for _ in loss.outputs]]
    joined = _joined(graph, shape[0])
    ways = joined[:1] or [Axis(0, 1, 0, shape[0])]
    if further:
        ways = [Axis(0, 1, 0, shape[0]), *joined]
        # With one sample nothing mixes, and nothing is gained either.
        ways += [Axis(dim, 1, 0, extent) for dim, extent in enumerate(shape) if dim > 0 and extent > 1]
    return [
        [_of_output(way, dims, z.dim()) for z, dims in zip(loss.outputs, loss.element_dims, strict=True)]
        for way in ways
    ]


def _joined(graph: Graph, rows: int) -> list[Axis]:
    """The dimensions that were joined into the leading one of the first root."""
    place = graph.roots[0]
    while place is not None:
        call, _ = place
        edges = [edge for edge in call.edges if edge is not None]
        if len(edges) != 1:
            break
        if call.name in VIEWS:
            leading: list[int] = []
            for extent in call.argument(call.edges.index(edges[0])):
                leading.append(extent)
                if prod(leading) >= rows:
                    break
            if len(leading) < 2 or prod(leading) != rows:
                break
            return [Axis(0, prod(leading[dim + 1 :]), 0, extent) for dim, extent in enumerate(leading) if extent > 1]
        if call.argument(call.edges.index(edges[0])) != call.outputs[0]:
            break
        place = edges[0]
    return []


def _of_output(way: Axis, element_dims: Sequence[int], dims: int) -> Axis:
    """The axis of an output from that of its elements."""
    if way.single:
        return Axis(WHOLE, 1, 0, 1)
    return way.at([d for d in range(dims) if d not in element_dims][way.dim])


class Columns:
    """Cotangents of the outputs of a model, c columns for all samples.

    In sample i, column k holds what belongs to sample i: for an exact curvature one column of the Hessian's root at one
    element of each sample, so c is the rank of an element times the number of elements of a sample that count.

    Args:
        loss: the loss.
        axes: where the samples lie in the outputs.
        kind, draws: which curvature, see `LossCall.root`.

    Attributes:
        number: c.
    """

    def __init__(self, loss: LossCall, axes: Sequence[Axis], kind: str, draws: int) -> None:
        self._loss, self._axes, self._kind, self._draws = loss, axes, kind, draws
        self._rank = loss.rank(kind, draws)  # type: ignore[arg-type]
        self._taken: Tensor | None = None
        elements = prod(loss.element_shape) // axes[0].count
        self._width = 1
        if kind == "exact" and elements > 1:
            self._width = elements
            counts = loss.counts()
            if counts is not None:
                counts = _by_sample(counts[..., None], self._axis_of_elements(0), 0)[..., 0]
                self._width = max(1, int(counts.sum(1).max()))
                if self._width < elements:
                    # Where a sample has fewer elements that count, those follow that do not, whose columns are zero.
                    self._taken = (~counts).byte().argsort(dim=1, stable=True)[:, : self._width]
        self._elements = elements
        self.number = self._rank * self._width

    def make(self, generator: torch.Generator | None) -> list[Tensor]:
        """Return the columns, for each output shape (c, *output)."""
        roots = self._loss.root(self._kind, self._draws, generator)  # type: ignore[arg-type]
        if self._kind != "exact" or self._elements == 1:
            return list(roots)
        return [self._spread(number, root) for number, root in enumerate(roots)]

    def _axis_of_elements(self, number: int) -> Axis:
        axis, dims = self._axes[number], self._loss.element_dims[number]
        return axis if axis.dim == WHOLE else axis.at(axis.dim - sum(d < axis.dim for d in dims))

    def _spread(self, number: int, root: Tensor) -> Tensor:
        """Give each element of a sample columns of its own: from (r, *output) to (c, *output)."""
        axis, dims = self._axis_of_elements(number), self._loss.element_dims[number]
        ends = range(root.dim() - len(dims), root.dim())
        moved = root.movedim([d + 1 for d in dims], list(ends))
        lead = moved.flatten(ends[0]) if len(dims) else moved[..., None]
        blocks = _by_sample(lead, axis, 1)  # (r, b, q, d)
        r, b, q, d = blocks.shape
        columns = blocks.new_zeros(self._width, r, b, q, d)
        if self._taken is None:
            columns.diagonal(dim1=0, dim2=3).copy_(blocks.movedim(2, -1))
        else:
            index = self._taken.T[:, None, :, None, None].expand(self._width, r, b, 1, d)
            chosen = blocks.gather(2, self._taken[None, :, :, None].expand(r, b, self._width, d))
            columns.scatter_(3, index, chosen.movedim(2, 0)[:, :, :, None])
        whole = _restore(columns.flatten(0, 1), axis, self._loss.element_shape)
        return whole.reshape(len(whole), *moved.shape[1:]).movedim(list(ends), [d + 1 for d in dims]).contiguous()


def _by_sample(elements: Tensor, axis: Axis, lead: int) -> Tensor:
    """From (*lead, *elements, d) to (*lead, b, q, d)."""
    samples = axis.by_sample(elements, lead)
    return samples.unsqueeze(-2) if samples.dim() == lead + 2 else samples.flatten(lead + 1, -2)


def _restore(columns: Tensor, axis: Axis, shape: Size) -> Tensor:
    """From (c, b, q, d) to (c, *elements, d): `_by_sample`, undone."""
    c, b, _, d = columns.shape
    if axis.dim == WHOLE:
        return columns.reshape(c, *shape, d)
    extent = shape[axis.dim]
    outer = extent // (axis.inner * b)
    rest = (*shape[: axis.dim], outer, axis.inner, *shape[axis.dim + 1 :])
    moved = columns.reshape(c, b, *rest, d).movedim(1, axis.dim + 2)
    return moved.reshape(c, *shape, d)
