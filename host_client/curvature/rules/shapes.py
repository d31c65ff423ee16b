"""Functions that rearrange, pick or join entries by shape and position alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from host_client.curvature.axis import Axis
from host_client.curvature.graph import Call
from host_client.curvature.rules.base import Axes, Rule, with_one
from host_client.curvature.rules.elementwise import broadcast, numbered

PLANE = ("AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "UpsampleNearest", "UpsampleNearestExact")
"""Functions of planes and of volumes."""


class Moving(Rule):
    """A function of one argument that moves whole dimensions.

    Args:
        move: from the call, and a dimension of the output, to that of the argument; None where there is none.
    """

    def __init__(self, move: Callable[[Call, int], int | None]) -> None:
        self._move = move

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples to the dimension before the move, if it has kept its extent."""
        axis = with_one(axes)
        dim = None if axis is None else self._move(call, axis.dim)
        if axis is None or dim is None or call.argument(0)[dim] != call.outputs[0][axis.dim]:
            return None
        return [axis.at(dim)]


class View(Rule):
    """A function that keeps all entries in their order."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples to the same entries in the argument's shape, where they lie along one dimension of it."""
        axis = with_one(axes)
        return None if axis is None else [axis.in_view(call.outputs[0], call.argument(0))]


class Expand(Rule):
    """`Tensor.expand`."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in any dimension that is not new."""
        axis = with_one(axes)
        return None if axis is None else [broadcast(call, axis, 0)]


class Parts(Rule):
    """A function with several outputs, which are stretches of one argument, or its slices in a dimension that goes.

    Args:
        slices: whether the dimension goes.
    """

    def __init__(self, *, slices: bool) -> None:
        self._slices = slices

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in the dimensions that are not split, the same one in all outputs."""
        known = {axis for axis in axes if axis is not None}
        if len(known) != 1:
            return None
        axis = known.pop()
        dim = dimension(call, "dim", len(call.argument(0)))
        if self._slices:
            return [axis.at(axis.dim + (axis.dim >= dim))]
        return [axis] if axis.dim != dim else None


class Joined(Rule):
    """A function that joins arguments along a dimension, or as slices in a new one.

    Args:
        slices: whether the dimension is new.
    """

    def __init__(self, *, slices: bool) -> None:
        self._slices = slices

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in the other dimensions; along the joined one, each argument has samples of its own."""
        axis = with_one(axes)
        if axis is None:
            return None
        dim = dimension(call, "dim", len(call.outputs[0]))
        if axis.dim != dim:
            there = axis.at(axis.dim - (axis.dim > dim)) if self._slices else axis
            return [None if place is None else there for place in call.edges]
        if self._slices:
            single = axis.inner == 1 and axis.count == call.outputs[0][dim] == len(call.edges)
            return [Axis(-1, 1, axis.start + i, 1) for i in range(len(call.edges))] if single else None
        return self._stretches(call, axis, dim)

    def _stretches(self, call: Call, axis: Axis, dim: int) -> Axes | None:
        known = _fill(
            [None if place is None else call.argument(i)[dim] for i, place in enumerate(call.edges)],
            call.outputs[0][dim],
        )
        if known is None:
            return None
        each = axis.inner * axis.count
        if each != call.outputs[0][dim]:  # every argument may have all samples, once or more often
            ends = accumulate(known)
            return [axis if n % each == 0 and end % each == 0 else None for n, end in zip(known, ends, strict=True)]
        if any(n % axis.inner for n in known):
            return None
        start, found = axis.start, []
        for extent in known:
            count = extent // axis.inner
            found.append(Axis(-1 if count == 1 else dim, axis.inner, start, count))
            start += count
        return found


def _fill(extents: Sequence[int | None], total: int) -> list[int] | None:
    """Extents of which at most one is missing."""
    missing = total - sum(n for n in extents if n is not None)
    if extents.count(None) > 1:
        return None
    return [missing if n is None else n for n in extents]


class Along(Rule):
    """A function of whole lines of its arguments, which all have the output's number of dimensions.

    Args:
        dims: dimensions in which the lines run, for a call.
        edges: number of arguments that keep their samples; the others have none.
    """

    def __init__(self, dims: Callable[[Call], Sequence[int]], edges: int = 1) -> None:
        self._dims, self._edges = dims, edges

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in the dimensions that the function does not work along."""
        axis = with_one(axes)
        if axis is None or axis.dim in self._dims(call):
            return None
        found: list[Axis | None] = []
        for edge, place in enumerate(call.edges):
            same = place is not None and edge < self._edges
            shape = call.argument(edge) if same else ()
            kept = len(shape) == len(call.outputs[0]) and shape[axis.dim] == call.outputs[0][axis.dim]
            found.append(axis if same and kept else None)
        return found


class Segments(Along):
    """`torch.segment_reduce`.

    Where the largest entry of a segment occurs several times, torch (2.13) shares a positive cotangent out and gives a
    negative one to each of them. Here both are shared out: a derivative is linear in the cotangent.
    """

    def differentiate(self, call: Call, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """The derivative of the positive part less that of the negative."""
        (cotangent,) = cotangents
        assert cotangent is not None
        (up,), (down,) = (call.differentiate([part.clamp(min=0)]) for part in (cotangent, -cotangent))
        return [None if up is None or down is None else up - down]


class Reduced(Rule):
    """A function that reduces dimensions of one argument."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in the dimensions that are not reduced."""
        axis = with_one(axes)
        if axis is None:
            return None
        shape = call.argument(0)
        reduced = dimensions(call, "dim", len(shape)) if call.saves("dim") else range(len(shape))
        if len(shape) == len(call.outputs[0]):  # kept with extent 1
            return [axis] if axis.dim not in reduced else None
        left = [d for d in range(len(shape)) if d not in reduced]
        if len(left) != len(call.outputs[0]):
            return None
        return [axis.at(left[axis.dim])]


def dimension(call: Call, name: str, dims: int) -> int:
    """Return a saved dimension, from 0 on. Negative ones are saved as 64 bits without sign."""
    return signed(call.saved(name)) % max(dims, 1)


def dimensions(call: Call, name: str, dims: int) -> list[int]:
    """Return saved dimensions, from 0 on; all of them where none is saved."""
    value: Any = call.saved(name)
    given = [value] if isinstance(value, int) else list(value or ())
    return [signed(d) % max(dims, 1) for d in given] if given else list(range(dims))


def signed(value: Any) -> int:
    """Return an integer that torch may have saved without its sign."""
    return value - (1 << 64) if value >= 1 << 63 else int(value)


def _transposed(call: Call, dim: int) -> int:
    dims = len(call.outputs[0])
    first, second = dimension(call, "dim0", dims), dimension(call, "dim1", dims)
    return {first: second, second: first}.get(dim, dim)


def _permuted(call: Call, dim: int) -> int:
    return dimensions(call, "dims", len(call.outputs[0]))[dim]


def _unsqueezed(call: Call, dim: int) -> int | None:
    new = dimension(call, "dim", len(call.outputs[0]))
    return None if dim == new else dim - (dim > new)


def _squeezed(call: Call, dim: int) -> int | None:
    """The output's dimensions are those of the argument that did not go."""
    shape = call.argument(0)
    gone = dimensions(call, "dim", len(shape)) if call.saves("dim") else range(len(shape))
    left = [d for d in range(len(shape)) if d not in gone or shape[d] != 1]
    return left[dim] if len(left) == len(call.outputs[0]) else None


def _selected(call: Call, dim: int) -> int:
    gone = dimension(call, "dim", len(call.argument(0)))
    return dim + (dim >= gone)


def _sliced(call: Call, dim: int) -> int | None:
    """Another dimension than that of the slice, or all of it in its order."""
    along = dimension(call, "dim", len(call.argument(0)))
    return dim if dim != along or signed(call.saved("step")) == 1 else None


def _unfolded(call: Call, dim: int) -> int | None:
    dims = len(call.argument(0))
    return dim if dim < dims and dim != dimension(call, "dimension", dims) else None


def repeated(call: Call, dim: int) -> int | None:
    """Return the dimension of the argument of a repetition, counted from the last."""
    before = dim - len(call.outputs[0]) + len(call.argument(0))
    return before if before >= 0 else None


def _on_diagonal(call: Call, dim: int) -> int | None:
    dims = len(call.argument(0))
    gone = {dimension(call, "dim1", dims), dimension(call, "dim2", dims)}
    left = [d for d in range(dims) if d not in gone]
    return left[dim] if dim < len(left) else None


def _named(call: Call) -> list[int]:
    return [dimension(call, "dim", len(call.outputs[0]))]


def _all_named(call: Call) -> list[int]:
    return dimensions(call, "dims", len(call.outputs[0]))


def _padded(call: Call) -> list[int]:
    pad: Any = call.saved("pad" if call.name.startswith("Constant") else "padding")
    dims = len(call.outputs[0])
    return [dims - 1 - i // 2 for i, n in enumerate(pad) if n]


def _last(dims: int) -> Callable[[Call], Sequence[int]]:
    return lambda call: range(len(call.outputs[0]) - dims, len(call.outputs[0]))


RULES: dict[str, Rule] = {
    **numbered(("View", "UnsafeView", "ReshapeAlias"), View()),
    **numbered(("Expand",), Expand()),
    **numbered(("T",), Moving(lambda call, dim: 1 - dim)),
    **numbered(("Transpose",), Moving(_transposed)),
    **numbered(("Permute",), Moving(_permuted)),
    **numbered(("Unsqueeze",), Moving(_unsqueezed)),
    **numbered(("Squeeze",), Moving(_squeezed), overloads=6),
    **numbered(("Select",), Moving(_selected)),
    **numbered(("Slice",), Moving(_sliced)),
    **numbered(("Unfold",), Moving(_unfolded)),
    **numbered(("Diagonal",), Moving(_on_diagonal)),
    **numbered(("Im2Col", "Col2Im"), Moving(lambda call, dim: 0 if dim == 0 and len(call.outputs[0]) > 2 else None)),
    **numbered(("Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes"), Parts(slices=False)),
    **numbered(("Unbind",), Parts(slices=True)),
    **numbered(("Cat",), Joined(slices=False)),
    **numbered(("Stack",), Joined(slices=True)),
    **numbered(("Softmax", "SafeSoftmax", "LogSoftmax", "Cumsum", "Cumprod", "Logcumsumexp", "Glu"), Along(_named)),
    **numbered(("SoftmaxBackwardData", "LogSoftmaxBackwardData", "LinalgCross"), Along(_named, edges=2)),
    **numbered(("Flip", "Roll"), Along(_all_named)),
    **numbered(("Sort", "Topk", "Gather", "IndexSelect", "Cummax", "Cummin"), Along(_named)),
    **numbered([f"{name}Pad{dims}D" for name in ("Reflection", "Replication") for dims in (1, 2, 3)], Along(_padded)),
    **numbered(("ConstantPadNd",), Along(_padded)),
    **numbered(("Tril", "Triu"), Along(_last(2))),
    **numbered(("SegmentReduce",), Segments(lambda call: dimensions(call, "axis", len(call.outputs[0])))),
    **numbered(("Mean", "Sum", "Amax", "Amin", "Max", "Min", "Logsumexp", "Var", "Std", "LinalgVectorNorm"), Reduced()),
    **numbered(("UpsampleNearest1D", "UpsampleNearestExact1D"), Along(_last(1))),
    **numbered([f"{name}2D" for name in PLANE], Along(_last(2))),
    **numbered([f"{name}3D" for name in PLANE], Along(_last(3))),
    **numbered(("MaxPool2DWithIndices",), Along(_last(2))),
    **numbered(("MaxPool3DWithIndices",), Along(_last(3))),
    **numbered(("UpsampleLinear1D",), Along(_last(1))),
    **numbered(("UpsampleBilinear2D", "UpsampleBicubic2D"), Along(_last(2))),
    **numbered(("UpsampleTrilinear3D", "PixelShuffle", "PixelUnshuffle"), Along(_last(3))),
}
"""Rules by the name of the node."""
