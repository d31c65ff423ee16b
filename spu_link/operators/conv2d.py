"""Jacobian rows of a 2-d convolution, from its inputs and cotangents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from spu_link.operators.base import (
    CHUNK_ELEMENTS,
    ArrayLike,
    BlockFactor,
    Role,
    Shapes,
    WireBlock,
    as_operand,
    mismatch,
    same_dtype,
)
from spu_link.operators.gram import add_products
from spu_link.operators.patches import patches_of
from tngd.spu.v1 import spu_pb2 as pb

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
        self.inputs = as_operand(inputs, field="conv2d.input", dimensions=4)
        self.cotangents = as_operand(cotangents, field="conv2d.cotangent", dimensions=5)
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.groups = groups
        self.bias = bias
        same_dtype("conv2d", self.inputs, self.cotangents)
        self.shape  # noqa: B018 - refuses shapes that do not fit

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
        weight = x[:, : self._weights()].reshape(k, g, out // g, *self._weight_shape[1:]).transpose(0, 1)
        y = F.conv2d(self.inputs, weight.flatten(0, 2), None, self.stride, self.padding, self.dilation, g)
        y = y.unflatten(1, (g, k, out // g)).permute(2, 0, 1, 3, 4, 5).reshape(k, b, out, -1)
        if self.bias:
            y = y + x[:, None, self._weights() :, None]
        rows = torch.einsum("cbop,kbop->kcb", self.cotangents.flatten(3), y)
        return rows.reshape(*lead, c * b).to(v.dtype)

    def adjoint(self, w: Tensor) -> Tensor:
        """Aᵀ w: the layer's weight gradient with the cotangents weighted by `w` and summed over c."""
        lead, (c, b, *_) = w.shape[:-1], self.cotangents.shape
        x = w.to(self.dtype).reshape(-1, c, b)
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

    def _row_stretches(self, most: int) -> Iterator[Tensor]:
        """A in full by output channels, in stretches (m, channels, in / groups · kernel) of at most `most` elements."""
        (c, b, out, *_), g = self.cotangents.shape, self.groups
        patches = patches_of(
            self.inputs, kernel=self.kernel, stride=self.stride, padding=self.padding, dilation=self.dilation
        )  # (b, in · kernel, p)
        patches = patches.unflatten(1, (g, -1)).mT  # (b, g, p, in / g · kernel)
        delta = self.cotangents.flatten(3).unflatten(2, (g, out // g))  # (c, b, g, out / g, p)
        channels = max(1, most // (c * b * patches.shape[3]))
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

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same factors after `function`."""
        return self._like(function(self.inputs), function(self.cotangents), self.wire()[0][0])

    def wire(self) -> list[WireBlock]:
        """One conv2d block."""
        geometry = pb.Conv2dBlock(
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias,
        )
        return [(pb.Block(conv2d=geometry), {pb.ROLE_INPUT: self.inputs, pb.ROLE_COTANGENT: self.cotangents})]

    @staticmethod
    def shape_of(block: pb.Block, shapes: Shapes) -> tuple[int, int]:
        """(c·b, out · in / groups · kernel (+ out))."""
        geometry = block.conv2d
        _check_geometry(geometry)
        b, channels, *extent = shapes[pb.ROLE_INPUT]
        c, samples, out, *out_extent = shapes[pb.ROLE_COTANGENT]
        if channels % geometry.groups or out % geometry.groups:
            raise mismatch("conv2d.groups", geometry.groups, f"a divisor of {channels} channels in and {out} out")
        expected = [
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                extent, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True
            )
        ]
        if samples != b or out_extent != expected:
            raise mismatch(
                "conv2d.cotangent", shapes[pb.ROLE_COTANGENT], f"(c, {b}, out, {expected[0]}, {expected[1]})"
            )
        weights = out * (channels // geometry.groups) * geometry.kernel[0] * geometry.kernel[1]
        return c * b, weights + (out if geometry.bias else 0)

    @classmethod
    def from_wire(cls, block: pb.Block, tensors: Mapping[Role, Tensor]) -> Self:
        """Factors behind a conv2d block."""
        return cls._like(tensors[pb.ROLE_INPUT], tensors[pb.ROLE_COTANGENT], block)

    @classmethod
    def _like(cls, inputs: Tensor, cotangents: Tensor, block: pb.Block) -> Self:
        geometry = block.conv2d
        return cls(
            inputs,
            cotangents,
            kernel=_pair(geometry.kernel),
            stride=_pair(geometry.stride),
            padding=_pair(geometry.padding),
            dilation=_pair(geometry.dilation),
            groups=geometry.groups,
            bias=geometry.bias,
        )


def _pair(values: Sequence[int]) -> Pair:
    height, width = values
    return height, width


def _check_geometry(geometry: pb.Conv2dBlock) -> None:
    for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        pair = list(getattr(geometry, name))
        if len(pair) != 2 or min(pair) < least:
            raise mismatch(f"conv2d.{name}", pair, f"two numbers, each at least {least}")
    if geometry.groups < 1:
        raise mismatch("conv2d.groups", geometry.groups, "at least 1")
