"""Jacobian rows of a linear layer, as outer products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from spu_link.errors import mismatch
from spu_link.operators.base import (
    CHUNK_ELEMENTS,
    ArrayLike,
    BlockFactor,
    Geometry,
    Shapes,
    contract_cotangents,
    weight_cotangents,
)
from spu_link.operators.gram import STRIP, add_products, gram_of, mirror, product, strips


class LinearRows(BlockFactor):
    """Rows of the Jacobian of y = W a + e with respect to (W, e), from the layer's inputs and cotangents.

    The layer is applied once to each sample, or at p positions of it (tokens, pixels). Row (c, i) of A is the outer
    product Σ_p δ_cip a_ipᵀ, flattened as W, followed by Σ_p δ_cip if the layer has a bias; m = c·b and
    N = d_out·d_in (+ d_out).

    Args:
        inputs: a, shape (b, d_in) or (b, p, d_in).
        cotangents: δ, shape (c, b, d_out) or (c, b, p, d_out): gradients of c scalar functions of each sample with
            respect to its y.
        bias: whether the layer has a bias.

    Raises:
        InvalidProgram: when shapes or dtypes do not fit together.
    """

    kind = "linear"
    fields = ("bias",)
    dimensions: ClassVar = {"input": (2, 3), "cotangent": (3, 4)}

    def __init__(self, inputs: ArrayLike, cotangents: ArrayLike, *, bias: bool) -> None:
        self.bias = bias
        self.inputs, self.cotangents = self._hold(inputs, cotangents)

    def _extents(self) -> tuple[int, int, int, int, int]:
        """(c, b, p, d_in, d_out), with p = 1 where there are no positions."""
        c, b, *positions, d_out = self.cotangents.shape
        return c, b, positions[0] if positions else 1, self.inputs.shape[-1], d_out

    def apply(self, v: Tensor) -> Tensor:
        """A v: per sample, the change of y for the change `v` of the parameters, seen through the cotangents."""
        _, b, p, d_in, d_out = self._extents()
        x = v.to(self.dtype).reshape(-1, v.shape[-1])
        weight, bias = x.split([d_out * d_in, self.shape[1] - d_out * d_in], 1)
        y = self.inputs.reshape(b * p, d_in) @ weight.unflatten(1, (d_out, d_in)).mT  # (k, b·p, d_out)
        if self.bias:
            y += bias[:, None]
        return contract_cotangents(self.cotangents, y).reshape(*v.shape[:-1], -1).to(v.dtype)

    def adjoint(self, w: Tensor) -> Tensor:
        """Aᵀ w: one backward pass of the layer with the cotangents weighted by `w` and summed over c."""
        _, b, p, d_in, d_out = self._extents()
        delta = weight_cotangents(self.cotangents, w.to(self.dtype)).reshape(-1, b * p, d_out)
        result = delta.new_empty(len(delta), self.shape[1])
        weight, bias = result.tensor_split([d_out * d_in], 1)
        inputs = self.inputs.reshape(b * p, d_in).expand(len(delta), -1, -1)
        torch.bmm(delta.mT, inputs, out=weight.unflatten(1, (d_out, d_in)))
        if self.bias:
            torch.sum(delta, 1, out=bias)
        return result.reshape(*w.shape[:-1], -1).to(w.dtype)

    def add_gram(self, total: Tensor) -> None:
        """Add A Aᵀ: (a aᵀ + 1) ∘ (δ δᵀ) without positions, the 1 only with a bias; else the cheaper of two ways.

        Explicit rows, in stretches of output features, take m·d_out·d_in (p + m / 2) multiplications; pairs of
        positions take b²p (p·d_in + c·d_out (p + c)) / 2, in smaller products that run at half the speed.
        """
        c, b, p, d_in, d_out = self._extents()
        m = c * b
        if self.inputs.dim() == 2:
            self._add_outer(total)
            return
        explicit = m * d_out * d_in * (2 * p + m)
        pairs = b * b * p * (p * d_in + c * d_out * (p + c))
        gram = gram_of(self._row_stretches(CHUNK_ELEMENTS), m) if explicit <= 2 * pairs else self._gram_of_pairs()
        total.view(c, b, c, b).add_(gram.view(b, c, b, c).permute(1, 0, 3, 2))
        if self.bias:
            add_products(total, [self.cotangents.sum(2).reshape(m, d_out)])

    def _add_outer(self, total: Tensor) -> None:
        c, b, _ = self.cotangents.shape
        outer = gram_of([self.inputs], b)[:, None] + (1.0 if self.bias else 0.0)
        delta = self.cotangents.flatten(0, 1)
        for columns in strips(c, max(1, STRIP // b)):
            rows, end = slice(columns.start * b, columns.stop * b), columns.stop * b
            inner = product(delta[rows], delta[:end]).to(total)
            total[rows, :end] += inner.view(-1, b, columns.stop, b).mul_(outer).view(-1, end)

    def _row_stretches(self, max_size: int) -> Iterator[Tensor]:
        """Yield the weight's columns of A by output features, in stretches (m, features·d_in).

        The rows are in the order (b, c), in which the products come. A stretch has at most `max_size` elements.
        """
        c, b, p, d_in, _ = self._extents()
        delta = self.cotangents.permute(1, 0, 3, 2)  # (b, c, d_out, p)
        for part in delta.split(max(1, max_size // (c * b * d_in)), dim=2):
            yield (part.reshape(b, -1, p) @ self.inputs).view(b * c, -1)

    def _gram_of_pairs(self) -> Tensor:
        """Gram matrix of the weight's columns, rows in the order (b, c): Σ_pq (a_ip·a_jq) (δ_cip·δ_djq).

        Sample by sample: the cotangents of i are carried over to all samples j ≤ i by a_i a_jᵀ, and meet δ_j there.
        """
        c, b, _, d_in, _ = self._extents()
        gram = torch.zeros(b, c, b, c, dtype=torch.float64)
        theirs = self.cotangents.flatten(2).permute(1, 2, 0)  # (b, p·d_out, c)
        for i in range(b):
            overlap = self.inputs[: i + 1].reshape(-1, d_in) @ self.inputs[i].T  # (j·p, p)
            carried = overlap @ self.cotangents[:, i]  # (c, j·p, d_out)
            mine = carried.view(c, i + 1, -1).transpose(0, 1)  # (j, c, p·d_out)
            gram[i, :, : i + 1] = (mine @ theirs[: i + 1]).transpose(0, 1)
        return mirror(gram.view(b * c, b * c))

    def to_rows(self) -> Tensor:
        """A in full."""
        c, b, p, d_in, d_out = self._extents()
        delta, inputs = self.cotangents.reshape(c, b, p, d_out), self.inputs.reshape(b, p, d_in)
        weight = torch.einsum("cbpo,bpi->cboi", delta, inputs).reshape(c * b, -1)
        return torch.cat([weight, delta.sum(2).reshape(c * b, -1)], dim=1) if self.bias else weight

    @classmethod
    def shape_of(cls, geometry: Geometry, shapes: Shapes) -> tuple[int, int]:
        """(c·b, d_out·d_in (+ d_out))."""
        inputs, cotangents = shapes["input"], shapes["cotangent"]
        *samples, d_in = inputs
        c, *seen, d_out = cotangents
        if seen != samples:
            expected = ", ".join(str(extent) for extent in samples)
            raise mismatch("linear.cotangent", cotangents, f"(c, {expected}, d_out) for inputs {inputs}")
        return c * samples[0], d_out * d_in + (d_out if geometry["bias"] else 0)
