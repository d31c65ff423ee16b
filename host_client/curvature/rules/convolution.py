"""Convolutions, and transposed ones, in one to three dimensions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from host_client.curvature.axis import Axis
from host_client.curvature.graph import Call
from host_client.curvature.rules.base import Axes, Operation, Rule, ToRows, with_one
from spu_link.operators.patches import patches_of


@dataclass(frozen=True)
class Geometry:
    """The geometry of a convolution, one number for each dimension of space; padding is zeros."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass
class _OverImages(Operation):
    """A layer that moves over inputs (n, in, *space), with n images."""

    inputs: Tensor
    roles: dict[int, str]
    shape: torch.Size
    geometry: Geometry

    def rows(self, role: str, axis: Axis, dtype: torch.dtype) -> ToRows:
        """The weight's gradient for each image, summed over those of a sample; or the cotangents, summed over space."""
        if role == "bias":
            return lambda cotangents: images_of(cotangents, axis, 1).flatten(4).sum((2, 4))
        return self._weight_rows(axis, dtype)

    @abstractmethod
    def _weight_rows(self, axis: Axis, dtype: torch.dtype) -> ToRows:
        """The weight's gradient."""


class Convolution(_OverImages):
    """A convolution."""

    def _weight_rows(self, axis: Axis, dtype: torch.dtype) -> ToRows:
        groups = self.geometry.groups
        patches = images_of(unfolded(self.inputs.to(dtype), self.geometry), axis, 0)  # (b, r, in · kernel, places)
        patches = patches.unflatten(2, (groups, -1)).transpose(1, 2).transpose(2, 3)
        patches = patches.flatten(3).mT  # (b, groups, r · places, in / g · kernel)

        def weight(cotangents: Tensor) -> Tensor:
            delta = images_of(cotangents, axis, 1).flatten(4)
            delta = delta.unflatten(3, (groups, -1)).movedim(2, 4).flatten(4)  # (k, b, groups, out / g, r · places)
            # Not broadcast: that would copy the patches for each column.
            rows = (delta[0] @ patches)[None] if len(delta) == 1 else torch.stack([one @ patches for one in delta])
            return rows.flatten(2)

        return weight


class TransposedConvolution(_OverImages):
    """The adjoint of a convolution."""

    def _weight_rows(self, axis: Axis, dtype: torch.dtype) -> ToRows:
        # As for the convolution that has the cotangents for its inputs, and the inputs for its cotangents.
        groups = self.geometry.groups
        inputs = images_of(self.inputs, axis, 0).to(dtype)  # (b, r, in, *space)
        inputs = (
            inputs.flatten(3).unflatten(2, (groups, -1)).movedim(1, 3).flatten(3)
        )  # (b, groups, in / g, r · places)
        places = self.inputs[0, 0].numel()

        def weight(cotangents: Tensor) -> Tensor:
            delta = images_of(cotangents, axis, 1)  # (k, b, r, out, *space)
            patches = unfolded(delta.flatten(0, 2), self.geometry, self.inputs.shape[2:])
            # (k, b, r, groups, out / g · kernel, places)
            patches = patches.unflatten(1, (groups, -1)).unflatten(0, delta.shape[:3])
            patches = patches.movedim(2, 4).reshape(*delta.shape[:2], groups, -1, delta.shape[2] * places)
            rows: Tensor = inputs @ patches.mT
            return rows.flatten(2)

        return weight


def images_of(tensor: Tensor, axis: Axis, lead: int) -> Tensor:
    """Return images by sample, (*lead, count, r, channels, …) with r of each, from (*lead, n, channels, …)."""
    images = axis.by_sample(tensor, lead)
    further = images.dim() - tensor.dim()
    if axis.dim < 0:
        return images
    return images.flatten(lead + 1, lead + 2) if further == 2 else images if further else images.unsqueeze(lead + 1)


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


class Convolve(Rule):
    """`torch.nn.functional.conv2d` and the like."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in the images, dimension 0."""
        axis = with_one(axes)
        if axis is None or axis.dim != 0:
            return None
        return [axis, *[None] * (len(call.edges) - 1)]

    def operation(self, call: Call) -> Operation | None:
        """A convolution, or the adjoint of one; real, with padding of no more than zeros on both sides."""
        if call.dtypes[0].is_complex:
            return None
        roles = {edge: role for edge, role in ((1, "weight"), (2, "bias")) if call.edges[edge] is not None}
        weight = call.saved_tensor("weight")
        stride, padding, dilation = (
            _numbers(call, name, weight.dim() - 2) for name in ("stride", "padding", "dilation")
        )
        groups: Any = call.saved("groups")
        geometry = Geometry(tuple(weight.shape[2:]), stride, padding, dilation, groups)
        kind = TransposedConvolution if call.saved("transposed") else Convolution
        inputs = call.saved_tensor("input") if 1 in roles else torch.empty(0)
        return kind(inputs, roles, call.outputs[0], geometry)

    def carry(self, call: Call, cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        """The cotangents of the inputs without those of weight and bias."""
        (cotangent,) = cotangents
        if cotangent is None or any(wanted[1:]) or call.edges[0] is None:
            return call.differentiate(cotangents)
        node: Any = call.node
        found, _, _ = torch.ops.aten.convolution_backward(
            cotangent, node._saved_input, node._saved_weight, None, node._saved_stride, node._saved_padding,
            node._saved_dilation, node._saved_transposed, node._saved_output_padding, node._saved_groups,
            [True, False, False],
        )  # fmt: skip
        return [found, *[None] * (len(call.edges) - 1)]


def _numbers(call: Call, name: str, space: int) -> tuple[int, ...]:
    value: Any = call.saved(name)
    return tuple(value) * space if len(value) == 1 else tuple(value)


RULES: dict[str, Rule] = {"ConvolutionBackward0": Convolve()}
"""Rules by the name of the node."""
