"""Which rows of a tensor belong to which sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Order = Literal["whole", "major", "minor", "single"]
"""How samples lie in a dimension: one each; r in a row for each; all b, r times; or anywhere, as there is only one."""


@dataclass(frozen=True)
class Layout:
    """Where in a tensor of rows its b samples lie.

    Attributes:
        dim: the dimension.
        order: how they lie in it.
        samples: b.
    """

    dim: int
    order: Order
    samples: int

    def by_sample(self, tensor: Tensor, lead: int) -> Tensor:
        """The samples' dimension behind `lead` further ones; r entries a sample, if any, stay where they were.

        Args:
            tensor: shape (*lead, *rows).
            lead: number of dimensions that are not the layout's.

        Returns:
            Shape (*lead, b, ...), a view.
        """
        if self.order == "single":
            return tensor.unsqueeze(lead)
        dim = lead + self.dim
        if self.order == "major":
            tensor = tensor.unflatten(dim, (self.samples, -1))
        elif self.order == "minor":
            tensor = tensor.unflatten(dim, (-1, self.samples))
            dim += 1
        return tensor if dim == lead else tensor.movedim(dim, lead)

    def by_position(self, tensor: Tensor, lead: int) -> Tensor:
        """As `by_sample`, with all dimensions but the last flattened: (*lead, b, p, d), or (*lead, b, d)."""
        tensor = self.by_sample(tensor, lead)
        return tensor.flatten(lead + 1, -2) if tensor.dim() > lead + 3 else tensor

    def rest(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of a shape with extent 1 in the samples' dimension, what `by_sample` leaves behind the samples."""
        return tuple(n for i, n in enumerate(shape) if not (self.order == "whole" and i == self.dim))

    def samples_of(self, extent: int, device: torch.device) -> Tensor:
        """The sample of each entry along the dimension, shape (extent,)."""
        index = torch.arange(extent, device=device)
        return index // (extent // self.samples) if self.order != "minor" else index % self.samples


def candidates(shape: Sequence[int], dims: Sequence[int], samples: int) -> list[Layout]:
    """Every way in which `samples` may lie in one of the dimensions `dims` of a shape, the usual ones first."""
    if samples == 1:
        return [Layout(0, "whole" if 0 in dims and shape[0] == 1 else "single", 1)]
    found = []
    for dim in dims:
        if shape[dim] == samples:
            found.append(Layout(dim, "whole", samples))
        elif shape[dim] and shape[dim] % samples == 0:
            found += [Layout(dim, "major", samples), Layout(dim, "minor", samples)]
    return found


class Probes:
    """Cotangents from which `Trace` can tell the samples apart: random, each zero but for half of the samples.

    Column t is that of the samples whose number has bit t; as many columns again belong to the other halves. They are
    made as they are taken, for together they may be many times as large as z.

    Args:
        z: what they are cotangents of.
        samples: b.
    """

    def __init__(self, z: Tensor, samples: int) -> None:
        number = torch.arange(samples, device=z.device)
        bits = torch.stack([(number >> t) & 1 for t in range((samples - 1).bit_length())]).bool()
        self._halves = torch.cat([bits, ~bits]).repeat_interleave(len(z) // samples, dim=1)
        # A generator of its own: the random numbers of the training are those without a capture.
        generator = torch.Generator(z.device).manual_seed(0)
        self._noise = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)

    def __len__(self) -> int:
        """2 ⌈log₂ b⌉."""
        return len(self._halves)

    def __getitem__(self, some: slice) -> Tensor:
        """Some of the columns, shape (k, *z.shape)."""
        halves = self._halves[some]
        return self._noise * halves.view(*halves.shape, *[1] * (self._noise.dim() - 1))


def traces(cotangents: Tensor, dims: Sequence[int]) -> Tensor:
    """Where some probes have arrived: from (k, *output) to (k, *extents of `dims`), bool."""
    others = [d + 1 for d in range(cotangents.dim() - 1) if d not in dims]
    arrived = cotangents != 0
    return arrived.any(dim=others) if others else arrived


@dataclass(frozen=True)
class Trace:
    """Which samples have left something at the rows of an output.

    Attributes:
        labels: number of the sample at each row; meaningless where nothing arrived.
        arrived: where something did.
        mixed: whether something of two samples arrived at one row.
    """

    labels: Tensor
    arrived: Tensor
    mixed: bool

    @classmethod
    def of(cls, traces: Tensor) -> Trace:
        """Read what `Probes` have left, shape (2 ⌈log₂ b⌉, *rows), bool."""
        ones, zeros = traces.chunk(2)
        weights = 2 ** torch.arange(len(ones), device=traces.device)
        labels = (ones * weights.view(-1, *[1] * (ones.dim() - 1))).sum(0)
        return cls(labels, (ones | zeros).any(0), bool((ones & zeros).any()))

    def fits(self, layout: Layout, dims: Sequence[int]) -> bool:
        """Whether each row has come from the sample that the layout says."""
        place = list(dims).index(layout.dim)
        shape = [1] * self.labels.dim()
        shape[place] = -1
        expected = layout.samples_of(self.labels.shape[place], self.labels.device).view(shape)
        return bool(((self.labels == expected) | ~self.arrived).all())
