"""Explicit rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor

from spu_link.operators.base import CHUNK_ELEMENTS, ArrayLike, BlockFactor, Role, Shapes, WireBlock, as_operand
from spu_link.operators.gram import add_products
from tngd.spu.v1 import spu_pb2 as pb

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

    def __init__(self, a: ArrayLike) -> None:
        self.a = as_operand(a, field="rows", dimensions=2)

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

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same rows after `function`."""
        return type(self)(function(self.a))

    def wire(self) -> list[WireBlock]:
        """One rows block."""
        return [(pb.Block(rows=pb.RowsBlock()), {pb.ROLE_ROWS: self.a})]

    @staticmethod
    def shape_of(block: pb.Block, shapes: Shapes) -> tuple[int, int]:
        """The tensor's own shape."""
        m, n = shapes[pb.ROLE_ROWS]
        return m, n

    @classmethod
    def from_wire(cls, block: pb.Block, tensors: Mapping[Role, Tensor]) -> Self:
        """Rows behind a rows block."""
        return cls(tensors[pb.ROLE_ROWS])
