"""Positions of the elements of a function's argument in a trained parameter, of which it may be a view."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from host_client.curvature.graph import Call, Place
from host_client.curvature.rules.shapes import dimension, signed
from spu_link.cached import cached_property


@dataclass(frozen=True)
class Source:
    """A trained parameter, or a view of one.

    Attributes:
        parameter: its index among the trained parameters.
        shape: of the view.
        start: which element of the flattened parameter the view's first one is.
        stride: of the view, in elements of the flattened parameter.
    """

    parameter: int
    shape: tuple[int, ...]
    start: int
    stride: tuple[int, ...]

    @cached_property
    def numel(self) -> int:
        """Elements of the view."""
        return math.prod(self.shape)

    @cached_property
    def contiguous(self) -> bool:
        """Return whether its elements, in order, are a stretch of the flattened parameter."""
        return _dense(self.shape, self.stride)

    @property
    def transposed(self) -> bool:
        """Return whether it is a matrix whose transpose is such a stretch."""
        return len(self.shape) == 2 and not self.contiguous and _dense(self.shape[::-1], self.stride[::-1])

    def transpose(self) -> Source:
        """Return the transpose of a matrix."""
        return Source(self.parameter, self.shape[::-1], self.start, self.stride[::-1])

    def squeeze(self) -> Source:
        """Return the view without dimensions of extent 1, but for the last two."""
        if len(self.shape) <= 2:
            return self
        kept = [d for d, n in enumerate(self.shape) if n != 1 or d >= len(self.shape) - 2]
        return Source(
            self.parameter, tuple(self.shape[d] for d in kept), self.start, tuple(self.stride[d] for d in kept)
        )

    def positions(self, device: torch.device) -> Tensor:
        """For each element of the view, in order, its place in the flattened parameter; shape (numel,), int64."""
        places = torch.full((), self.start, device=device)
        for extent, step in zip(self.shape, self.stride, strict=True):
            places = places[..., None] + torch.arange(extent, device=device) * step
        return places.flatten()


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for extent, step in zip(reversed(shape), reversed(stride), strict=True):
        if extent != 1 and step != expected:
            return False
        expected *= extent
    return True


def _natural(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor whose entries lie one after the other."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(strides[::-1])


def source_of(place: Place) -> Source | None:
    """Return where an argument lies in the parameter that it is a view of; None if it is something else."""
    call, number = place
    path: list[tuple[Call, int]] = []
    while call.parameter is None:
        if call.name not in VIEWS or len(call.edges) != 1:
            return None
        path.append((call, number))
        call, number = call.behind(0)
    shape = call.outputs[0]
    if len(path) <= 1 and all(made_by.name == "TBackward0" for made_by, _ in path):  # by far the most frequent
        whole = Source(call.parameter, tuple(shape), 0, _natural(shape))
        return whole.transpose() if path else whole
    view = torch.empty(shape, device="meta")
    for made_by, output in reversed(path):
        viewed = VIEWS[made_by.name](view, made_by, output)
        if viewed is None or viewed.shape != made_by.outputs[output]:
            return None
        view = viewed
    return Source(call.parameter, tuple(view.shape), int(view.storage_offset()), view.stride())


def _view(tensor: Tensor, call: Call, output: int) -> Tensor | None:
    try:
        return tensor.view(call.outputs[0])
    except RuntimeError:  # the entries lie in another order than they would in a parameter laid out as usual
        return None


def _sizes(call: Call) -> int | list[int]:
    value: Any = call.saved("split_sizes" if "Sizes" in call.name else "split_size")
    return value if isinstance(value, int) else list(value)


def _slice(tensor: Tensor, call: Call, output: int) -> Tensor:
    start, end, step = (signed(call.saved(name)) for name in ("start", "end", "step"))
    dim = dimension(call, "dim", tensor.dim())
    start, end, step = slice(start, end, step).indices(tensor.shape[dim])
    return tensor.narrow(dim, start, end - start)[(slice(None),) * dim + (slice(None, None, step),)]


def _same(tensor: Tensor, call: Call, output: int) -> Tensor:
    return tensor


def _all(names: str, view: Callable[[Tensor, Call, int], Tensor | None]) -> dict[str, Callable[..., Tensor | None]]:
    return {f"{name}Backward{n}": view for name in names.split() for n in range(3)}


VIEWS: dict[str, Callable[[Tensor, Call, int], Tensor | None]] = {
    **_all("Alias Clone ToCopy", _same),
    **_all("T", lambda t, call, output: t.t()),
    **_all("View UnsafeView ReshapeAlias Unsqueeze Squeeze", _view),
    **_all("Transpose", lambda t, c, output: t.transpose(signed(c.saved("dim0")), signed(c.saved("dim1")))),
    **_all("Permute", lambda t, c, output: t.permute([signed(d) for d in c.saved("dims")])),  # type: ignore[attr-defined]
    **_all("Select", lambda t, c, output: t.select(signed(c.saved("dim")), signed(c.saved("index")))),
    **_all("Slice", _slice),
    **_all(
        "Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes",
        lambda t, c, output: t.split(_sizes(c), dimension(c, "dim", t.dim()))[output],
    ),
    **_all("Unbind", lambda t, c, output: t.unbind(dimension(c, "dim", t.dim()))[output]),
}
"""By the name of the node, what its function makes of a tensor: a view of it, or the same values elsewhere."""
