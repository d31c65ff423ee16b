"""Convolutions, and transposed ones, in one to three dimensions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from host_client.curvature.layouts import Layout
from host_client.curvature.rules.base import Operation, Rule, Rules, ToRows
from spu_link.operators.patches import patches_of


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves over its input, one number for each dimension of space; padding is zeros."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass
class _OverImages(Operation):
    """A layer that moves over inputs (n, in, *space), with n images.

    Attributes:
        inputs: padded further where its padding is not the same on both sides.
        batched: whether the output has the dimension n.
    """

    inputs: Tensor
    roles: dict[str, Tensor]
    geometry: Geometry
    batched: bool

    def sample_dims(self, shape: Sequence[int], roles: Collection[str]) -> Sequence[int]:
        """The images."""
        return (0,) if self.batched else ()

    def rows(self, role: str, layout: Layout, dtype: torch.dtype) -> ToRows:
        """The weight's gradient for each image, summed over those of a sample; or the cotangents, summed over space."""
        if role == "bias":
            return lambda cotangents: _images(cotangents, layout, self.batched).flatten(4).sum((2, 4))
        return self._weight_rows(layout, dtype)

    @abstractmethod
    def _weight_rows(self, layout: Layout, dtype: torch.dtype) -> ToRows:
        """The weight's gradient."""


class Convolution(_OverImages):
    """A convolution."""

    def cotangents(self, layout: Layout) -> ToRows:
        """From cotangents to those by sample, (k, b, out, *space), where each sample has one image."""
        return lambda cotangents: _images(cotangents, layout, self.batched)[:, :, 0]

    def _weight_rows(self, layout: Layout, dtype: torch.dtype) -> ToRows:
        groups = self.geometry.groups
        patches = unfolded(self.inputs.to(dtype), self.geometry)  # (n, in · kernel, places)
        patches = layout.by_sample(patches, 0) if layout.order != "single" else patches[None]
        if patches.dim() == 3:
            patches = patches[:, None]
        patches = (
            patches.unflatten(2, (groups, -1)).transpose(1, 2).transpose(2, 3)
        )  # (b, groups, in / g · kernel, r, places)
        patches = patches.flatten(3).mT  # (b, groups, r · places, in / g · kernel)

        def weight(cotangents: Tensor) -> Tensor:
            delta = _images(cotangents, layout, self.batched).flatten(4)
            delta = delta.unflatten(3, (groups, -1)).movedim(2, 4).flatten(4)  # (k, b, groups, out / g, r · places)
            # Not broadcast: that would copy the patches for each column.
            rows = (delta[0] @ patches)[None] if len(delta) == 1 else torch.stack([one @ patches for one in delta])
            return rows.flatten(2)

        return weight


class TransposedConvolution(_OverImages):
    """The adjoint of a convolution."""

    def _weight_rows(self, layout: Layout, dtype: torch.dtype) -> ToRows:
        # As for the convolution that has the cotangents for its inputs, and the inputs for its cotangents.
        groups = self.geometry.groups
        inputs = _images(self.inputs[None] if self.batched else self.inputs, layout, self.batched)[0].to(dtype)
        inputs = (
            inputs.flatten(3).unflatten(2, (groups, -1)).movedim(1, 3).flatten(3)
        )  # (b, groups, in / g, r · places)
        places = self.inputs[0, 0].numel()

        def weight(cotangents: Tensor) -> Tensor:
            delta = _images(cotangents, layout, self.batched)  # (k, b, r, out, *space)
            patches = unfolded(delta.flatten(0, 2), self.geometry, self.inputs.shape[2:])
            patches = patches.unflatten(1, (groups, -1)).unflatten(
                0, delta.shape[:3]
            )  # (k, b, r, groups, out / g · kernel, places)
            patches = patches.movedim(2, 4).reshape(*delta.shape[:2], groups, -1, delta.shape[2] * places)
            rows: Tensor = inputs @ patches.mT
            return rows.flatten(2)

        return weight


def _images(cotangents: Tensor, layout: Layout, batched: bool) -> Tensor:
    """Of shape (k, b, r, channels, *space) with r images a sample."""
    if not batched:
        return cotangents[:, None, None]
    images = layout.by_sample(cotangents, 1)
    return images[:, :, None] if layout.order == "whole" else images


def unfolded(images: Tensor, geometry: Geometry, places: Sequence[int] | None = None) -> Tensor:
    """The patches that the kernel meets, shape (n, channels · kernel, places); see `patches_of`."""
    return patches_of(
        images,
        kernel=geometry.kernel,
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        places=places,
    )


def _tuple(value: int | Sequence[int], space: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * space
    return tuple(value) * space if len(value) == 1 else tuple(value)


def _convolution(space: int) -> Rule:
    def rule(
        shape: torch.Size,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Operation:
        batched = input.dim() == space + 2
        inputs = input.detach() if batched else input.detach()[None]
        kernel, stride, dilation = tuple(weight.shape[2:]), _tuple(stride, space), _tuple(dilation, space)
        if padding == "same":
            total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            padding = [t // 2 for t in total]
            if any(t % 2 for t in total):
                # An odd total has one more row of zeros after the image than before it.
                inputs = F.pad(inputs, [p for t in reversed(total) for p in (0, t % 2)])
        elif isinstance(padding, str):
            padding = 0
        geometry = Geometry(kernel, stride, _tuple(padding, space), dilation, groups)
        return Convolution(inputs, _roles(weight, bias), geometry, batched)

    return rule


def _transposed(space: int) -> Rule:
    def rule(
        shape: torch.Size,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> Operation:
        batched = input.dim() == space + 2
        geometry = Geometry(
            tuple(weight.shape[2:]), _tuple(stride, space), _tuple(padding, space), _tuple(dilation, space), groups
        )
        inputs = input.detach() if batched else input.detach()[None]
        return TransposedConvolution(inputs, _roles(weight, bias), geometry, batched)

    return rule


def _roles(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


def _all(functions: Sequence[Callable[..., Tensor]], make: Callable[[int], Rule]) -> Rules:
    return {function: make(space) for space, function in enumerate(functions, 1)}


RULES: Rules = {
    **_all((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **_all((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    **_all((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _transposed),
    **_all((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _transposed),
}
