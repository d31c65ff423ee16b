"""Explicit rows."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from spu_link.operators.base import CHUNK_ELEMENTS, ArrayLike, BlockFactor, Geometry, Shapes
from spu_link.operators.gram import add_products

SUM_ELEMENTS = 1 << 14
"""Maximum number of products that are added up in the operands' dtype."""


class Rows(BlockFactor):
    """F = AᵀA with A given in full.

    Args:
        a: A, shape (m, N), float32 or float64.

    Raises:
        InvalidProgram: for another dtype or number of dimensions.
    """

    kind = "rows"
    dimensions: ClassVar = {"rows": (2,)}

    def __init__(self, a: ArrayLike) -> None:
        (self.a,) = self._hold(a)

    def apply(self, v: Tensor) -> Tensor:
        """A v, over stretches of columns whose sums are added in the dtype of `v`.

        A million products of one sign, added up in float32, come out wrong by 1e-3.
        """
        total = torch.zeros(*v.shape[:-1], len(self.a), dtype=v.dtype, device=v.device)
        for part, a in zip(v.split(SUM_ELEMENTS, -1), self.a.split(SUM_ELEMENTS, 1), strict=True):
            total += part.to(a.dtype) @ a.T
        return total

    def adjoint(self, w: Tensor) -> Tensor:
        """Aᵀ w."""
        return (w.to(self.a.dtype) @ self.a).to(w.dtype)

    def add_gram(self, total: Tensor) -> None:
        """Add A Aᵀ, over stretches of columns so that no float64 copy of A is made."""
        add_products(total, self.a.split(max(1, min(SUM_ELEMENTS, CHUNK_ELEMENTS // len(self.a))), dim=1))

    def to_rows(self) -> Tensor:
        """A."""
        return self.a

    @classmethod
    def shape_of(cls, geometry: Geometry, shapes: Shapes) -> tuple[int, int]:
        """The tensor's own shape."""
        m, n = shapes["rows"]
        return m, n
