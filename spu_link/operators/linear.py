"""Jacobian rows of a linear layer, as outer products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor

from spu_link.operators.base import (
    ArrayLike,
    BlockFactor,
    Role,
    Shapes,
    WireBlock,
    as_operand,
    gram_of,
    mismatch,
    same_dtype,
)
from tngd.spu.v1 import spu_pb2 as pb


class LinearRows(BlockFactor):
    """Rows of the Jacobian of y = W a + c with respect to (W, c), from the layer's inputs and cotangents.

    Row (c, i) of A is the outer product δ_ci a_iᵀ, flattened as W, followed by δ_ci if the layer has a bias. With a of
    shape (b, d_in) and δ of shape (c, b, d_out), m = c·b and N = d_out·d_in (+ d_out).

    Args:
        inputs: a, shape (b, d_in).
        cotangents: δ, shape (c, b, d_out): gradients of c scalar functions of each sample with respect to its y.
        bias: whether the layer has a bias.

    Raises:
        InvalidProgram: when shapes or dtypes do not fit together.
    """

    kind = "linear"

    def __init__(self, inputs: ArrayLike, cotangents: ArrayLike, *, bias: bool) -> None:
        self.inputs = as_operand(inputs, field="linear.input", dimensions=2)
        self.cotangents = as_operand(cotangents, field="linear.cotangent", dimensions=3)
        self.bias = bias
        same_dtype("linear", self.inputs, self.cotangents)
        self.shape  # noqa: B018 - refuses shapes that do not fit

    def apply(self, v: Tensor) -> Tensor:
        """A v: per sample, the change of y for the change `v` of the parameters, seen through the cotangents."""
        d_out, d_in = self.cotangents.shape[2], self.inputs.shape[1]
        x = v.to(self.dtype)
        y = self.inputs @ x[..., : d_out * d_in].unflatten(-1, (d_out, d_in)).mT  # (..., b, d_out)
        if self.bias:
            y = y + x[..., None, d_out * d_in :]
        return torch.einsum("cbo,...bo->...cb", self.cotangents, y).flatten(-2).to(v.dtype)

    def adjoint(self, w: Tensor) -> Tensor:
        """Aᵀ w: one backward pass of the layer with the cotangents weighted by `w` and summed over c."""
        c, b, _ = self.cotangents.shape
        x = w.to(self.dtype).unflatten(-1, (c, b))
        delta = torch.einsum("...cb,cbo->...bo", x, self.cotangents)
        weight = (delta.mT @ self.inputs).flatten(-2)
        parts = [weight, delta.sum(-2)] if self.bias else [weight]
        return torch.cat(parts, dim=-1).to(w.dtype)

    def gram(self) -> Tensor:
        """A Aᵀ = (a aᵀ + 1) ∘ (δ δᵀ), the 1 only with a bias."""
        c, b, d_out = self.cotangents.shape
        m = c * b
        outer = gram_of([self.inputs], b) + (1.0 if self.bias else 0.0)
        gram = gram_of([self.cotangents.reshape(m, d_out)], m)
        return gram.view(c, b, c, b).mul_(outer[None, :, None, :]).view(m, m)

    def to_rows(self) -> Tensor:
        """A in full."""
        m = self.shape[0]
        weight = torch.einsum("cbo,bi->cboi", self.cotangents, self.inputs).reshape(m, -1)
        return torch.cat([weight, self.cotangents.reshape(m, -1)], dim=1) if self.bias else weight

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same factors after `function`."""
        return type(self)(function(self.inputs), function(self.cotangents), bias=self.bias)

    def wire(self) -> list[WireBlock]:
        """One linear block."""
        block = pb.Block(linear=pb.LinearBlock(bias=self.bias))
        return [(block, {pb.ROLE_INPUT: self.inputs, pb.ROLE_COTANGENT: self.cotangents})]

    @staticmethod
    def shape_of(block: pb.Block, shapes: Shapes) -> tuple[int, int]:
        """(c·b, d_out·d_in (+ d_out))."""
        b, d_in = shapes[pb.ROLE_INPUT]
        c, samples, d_out = shapes[pb.ROLE_COTANGENT]
        if samples != b:
            raise mismatch("linear.cotangent", shapes[pb.ROLE_COTANGENT], f"(c, {b}, d_out) for inputs ({b}, {d_in})")
        return c * b, d_out * d_in + (d_out if block.linear.bias else 0)

    @classmethod
    def from_wire(cls, block: pb.Block, tensors: Mapping[Role, Tensor]) -> Self:
        """Factors behind a linear block."""
        return cls(tensors[pb.ROLE_INPUT], tensors[pb.ROLE_COTANGENT], bias=block.linear.bias)
