"""The position of the samples of a batch in a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE = -1
"""The dimension of a tensor all of which belongs to one sample."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The position of the samples in a tensor: along one dimension, of extent outer · count · inner.

    The entry (o, i, j) of that dimension belongs to sample start + i.

    Attributes:
        dim: the dimension; `WHOLE` where all entries belong to one sample.
        inner: entries of one sample that follow each other before those of the next sample.
        start: the first sample.
        count: number of samples.
    """

    dim: int
    inner: int
    start: int
    count: int

    @property
    def single(self) -> bool:
        """Return whether there is one sample only."""
        return self.count == 1

    def at(self, dim: int) -> Axis:
        """Return the same samples along another dimension."""
        return self if dim == self.dim else Axis(dim, self.inner, self.start, self.count)

    def in_view(self, shape: Sequence[int], viewed: Sequence[int]) -> Axis | None:
        """Return the axis in a tensor of shape `viewed` with the same entries in the same order; None if there is none.

        Args:
            shape: of the tensor that this axis is of.
            viewed: of the other tensor.
        """
        stride = self.inner * math.prod(shape[self.dim + 1 :])
        behind = 1
        for dim in range(len(viewed) - 1, -1, -1):
            if viewed[dim] * behind > stride:
                inner = stride // behind
                if stride % behind or viewed[dim] % (inner * self.count):
                    return None
                return Axis(dim, inner, self.start, self.count)
            behind *= viewed[dim]
        return None

    def by_sample(self, tensor: Tensor, lead: int) -> Tensor:
        """Move the samples' dimension behind `lead` further ones; further entries of a sample stay where they were.

        Args:
            tensor: shape (*lead, *shape).
            lead: number of dimensions that the axis does not know.

        Returns:
            Shape (*lead, count, …), a view.
        """
        if self.dim == WHOLE:
            return tensor.unsqueeze(lead)
        dim = lead + self.dim
        if self.inner > 1:
            tensor = tensor.unflatten(dim, (-1, self.inner))
        if tensor.shape[dim] != self.count:
            tensor = tensor.unflatten(dim, (-1, self.count))
            dim += 1
        return tensor if dim == lead else tensor.movedim(dim, lead)

    def by_position(self, tensor: Tensor, lead: int) -> Tensor:
        """As `by_sample`, with all dimensions but the last flattened: (*lead, count, p, d), or (*lead, count, d)."""
        tensor = self.by_sample(tensor, lead)
        return tensor.flatten(lead + 1, -2) if tensor.dim() > lead + 3 else tensor

    def rest(self, aligned: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
        """Return what `by_sample` leaves behind the samples of a shape that broadcasts to this axis' tensor.

        Args:
            aligned: the shape, with extent 1 in the samples' dimension.
            shape: of the tensor.
        """
        if self.dim == WHOLE:
            return tuple(aligned)
        kept = (self.inner > 1) + (shape[self.dim] != self.inner * self.count)
        return (*aligned[: self.dim], *[1] * kept, *aligned[self.dim + 1 :])

    def unpack(self, cotangents: Tensor, columns: Tensor, samples: Tensor) -> Tensor:
        """Return cotangents each of which belongs to one sample.

        Args:
            cotangents: packed, shape (c, *shape): what belongs to sample i is the i-th sample's own cotangent.
            columns: which column, shape (n,).
            samples: which sample of it, shape (n,).

        Returns:
            Shape (n, *shape), zero but for the entries of that sample.
        """
        chosen = cotangents[columns]
        labels = self._labels(chosen[0])
        mine = labels == samples.view(-1, *[1] * labels.dim())
        return chosen.masked_fill(~mine, 0.0)

    def scale(self, cotangents: Tensor, weights: Tensor) -> Tensor:
        """Return packed cotangents (c, *shape) with those of each sample multiplied by its weight, (c, samples)."""
        return cotangents * weights[:, self._labels(cotangents[0])]

    def _labels(self, tensor: Tensor) -> Tensor:
        """The sample of each entry, in a shape that broadcasts to the tensor's."""
        shape = [1] * tensor.dim()
        if self.dim == WHOLE:
            return torch.full(shape, self.start, device=tensor.device)
        shape[self.dim] = tensor.shape[self.dim]
        entries = torch.arange(tensor.shape[self.dim], device=tensor.device)
        return (entries // self.inner % self.count + self.start).view(shape)
