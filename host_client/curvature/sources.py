"""Where the elements of a tensor lie in a trained parameter: the parameter itself, or a view of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
    shape: torch.Size
    start: int
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of the view."""
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        """Whether its elements, in order, are a stretch of the flattened parameter."""
        return self._dense(self.shape, self.stride)

    @property
    def transposed(self) -> bool:
        """Whether it is a matrix whose transpose is such a stretch."""
        return len(self.shape) == 2 and not self.contiguous and self._dense(self.shape[::-1], self.stride[::-1])

    @staticmethod
    def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
        expected = 1
        for extent, step in zip(reversed(shape), reversed(stride), strict=True):
            if extent != 1 and step != expected:
                return False
            expected *= extent
        return True

    def positions(self, device: torch.device) -> Tensor:
        """For each element of the view, in order, its place in the flattened parameter; shape (numel,), int64."""
        places = torch.full((), self.start, device=device)
        for extent, step in zip(self.shape, self.stride, strict=True):
            places = places[..., None] + torch.arange(extent, device=device) * step
        return places.flatten()


def source_of(index: int, parameter: nn.Parameter) -> Source:
    """The parameter as a view of itself, whatever its order in memory."""
    stride = torch.empty(parameter.shape, device="meta").stride()
    return Source(index, parameter.shape, 0, stride)


def source_of_view(source: Source, base: Tensor, view: Tensor) -> Source | None:
    """The place of a view in the parameter that `base` has its elements from; None if it is not such a view.

    Args:
        source: of `base`.
        base: a parameter in its natural order in memory, or a view of one.
        view: what a function has made of `base` alone.
    """
    if view.dtype != base.dtype or view.layout != torch.strided or view.is_conj() or view.is_neg():
        return None
    if view.untyped_storage().data_ptr() != base.untyped_storage().data_ptr():
        return None
    if base.stride() != source.stride:
        return None
    start = source.start + view.storage_offset() - base.storage_offset()
    return Source(source.parameter, view.shape, int(start), view.stride())
