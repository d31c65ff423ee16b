"""Jacobian rows of a 2-d convolution, from its inputs and cotangents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from spu_link.errors import mismatch
from spu_link.operators.base import (
    CHUNK_ELEMENTS,
    ArrayLike,
    BlockFactor,
    Geometry,
    Shapes,
)
from spu_link.operators.gram import add_products
from spu_link.operators.patches import patches_of

Pair = tuple[int, int]


class Conv2dRows(BlockFactor):
    """Rows of the Jacobian of a convolution with respect to (weight, bias), from the layer's inputs and cotangents.

    Row (c, i) of A is the layer's weight gradient for input i and output cotangent δ_ci, flattened as the weight
    (out, in / groups, kernel height, kernel width), followed by δ_ci summed over positions if the layer has a bias.

    Args:
        inputs: shape (b, in, height, width).
        cotangents: δ, shape (c, b, out, output height, output width).
        kernel: extents (height, width) of the kernel.
        stride, padding, dilation: as in `torch.nn.Conv2d`, (height, width); padding is zeros.
        groups: as in `torch.nn.Conv2d`.
        bias: whether the layer has a bias.

    Raises:
        InvalidProgram: when shapes, dtypes and geometry do not fit together.
    """

    kind = "conv2d"
    fields = ("kernel", "stride", "padding", "dilation", "groups", "bias")
    dimensions: ClassVar = {"input": (4,), "cotangent": (5,)}

    def __init__(
        self,
        inputs: ArrayLike,
        cotangents: ArrayLike,
        *,
        kernel: Pair,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        bias: bool,
    ) -> None:
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.groups = groups
        self.bias = bias
        self.inputs, self.cotangents = self._hold(inputs, cotangents)

    @property
    def _weight_shape(self) -> tuple[int, int, int, int]:
        return (self.cotangents.shape[2], self.inputs.shape[1] // self.groups, *self.kernel)

    def _weights(self) -> int:
        return torch.Size(self._weight_shape).numel()

    def apply(self, v: Tensor) -> Tensor:
        """A v: the convolution with `v` for its weights, seen through the cotangents."""
        lead = v.shape[:-1]
        x = v.to(self.dtype).reshape(-1, v.shape[-1])
        k, (c, b, out), g = len(x), self.cotangents.shape[:3], self.groups
        # All right-hand sides in one convolution: output channels ordered (group, side, channel of the group).
        weight, bias = x.split([self._weights(), self.shape[1] - self._weights()], 1)
        weight = weight.reshape(k, g, out // g, *self._weight_shape[1:]).transpose(0, 1)
        y = F.conv2d(self.inputs, weight.flatten(0, 2), None, self.stride, self.padding, self.dilation, g)
        y = y.unflatten(1, (g, k, out // g)).permute(2, 0, 1, 3, 4, 5).reshape(k, b, out, -1)
        if self.bias:
            y = y + bias[:, None, :, None]
        rows = torch.einsum("cbop,kbop->kcb", self.cotangents.flatten(3), y)
        return rows.reshape(*lead, c * b).to(v.dtype)

    def adjoint(self, w: Tensor) -> Tensor:
        """Aᵀ w: the layer's weight gradient with the cotangents weighted by `w` and summed over c."""
        lead, (c, b, *_) = w.shape[:-1], self.cotangents.shape
        x = w.to(self.dtype).unflatten(-1, (c, b)).reshape(-1, c, b)
        delta = torch.einsum("kcb,cbohw->kbohw", x, self.cotangents)
        parts = [
            torch.stack(
                [
                    conv2d_weight(
                        self.inputs,
                        list(self._weight_shape),
                        d,
                        stride=self.stride,
                        padding=self.padding,
                        dilation=self.dilation,
                        groups=self.groups,
                    ).flatten()
                    for d in delta
                ]
            )
        ]
        if self.bias:
            parts.append(delta.sum((1, 3, 4)))
        return torch.cat(parts, dim=1).reshape(*lead, -1).to(w.dtype)

    def _row_stretches(self, max_size: int) -> Iterator[Tensor]:
        """Yield A by output channels, in stretches (m, channels, in / groups · kernel) of up to `max_size` elements."""
        (c, b, out, *_), g = self.cotangents.shape, self.groups
        patches = patches_of(
            self.inputs, kernel=self.kernel, stride=self.stride, padding=self.padding, dilation=self.dilation
        )  # (b, in · kernel, p)
        patches = patches.unflatten(1, (g, -1)).mT  # (b, g, p, in / g · kernel)
        delta = self.cotangents.flatten(3).unflatten(2, (g, out // g))  # (c, b, g, out / g, p)
        channels = max(1, max_size // (c * b * patches.shape[3]))
        for group in range(g):
            for part in delta[:, :, group].split(channels, dim=2):
                rows = part.new_empty(*part.shape[:3], patches.shape[3])
                for column, row in zip(part, rows, strict=True):
                    torch.bmm(column, patches[:, group], out=row)
                yield rows.reshape(c * b, part.shape[2], -1)

    def add_gram(self, total: Tensor) -> None:
        """Add A Aᵀ, over stretches of output channels so that A is never whole in memory."""
        add_products(total, (rows.flatten(1) for rows in self._row_stretches(CHUNK_ELEMENTS)))
        if self.bias:
            add_products(total, [self.cotangents.sum((3, 4)).flatten(0, 1)])

    def to_rows(self) -> Tensor:
        """A in full."""
        m, n = self.shape
        rows = torch.cat(list(self._row_stretches(m * n)), dim=1).flatten(1)
        return torch.cat([rows, self.cotangents.sum((3, 4)).reshape(m, -1)], dim=1) if self.bias else rows

    @classmethod
    def shape_of(cls, geometry: Geometry, shapes: Shapes) -> tuple[int, int]:
        """(c·b, out · in / groups · kernel (+ out))."""
        pairs = {"kernel": 1, "stride": 1, "padding": 0, "dilation": 1}
        for name, minimum in pairs.items():
            pair = list(geometry[name])
            if len(pair) != 2 or min(pair) < minimum:
                raise mismatch(f"conv2d.{name}", pair, f"two numbers, each at least {minimum}")
        groups = geometry["groups"]
        if groups < 1:
            raise mismatch("conv2d.groups", groups, "at least 1")
        b, channels, *extent = shapes["input"]
        c, samples, out, *out_extent = shapes["cotangent"]
        if channels % groups or out % groups:
            raise mismatch("conv2d.groups", groups, f"a divisor of {channels} channels in and {out} out")
        expected = [
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(extent, *(geometry[name] for name in pairs), strict=True)
        ]
        if samples != b or out_extent != expected:
            raise mismatch("conv2d.cotangent", shapes["cotangent"], f"(c, {b}, out, {expected[0]}, {expected[1]})")
        weights = out * (channels // groups) * geometry["kernel"][0] * geometry["kernel"][1]
        return c * b, weights + (out if geometry["bias"] else 0)
