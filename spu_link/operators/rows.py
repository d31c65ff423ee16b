"""Explicit rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

from torch import Tensor

from spu_link.operators.base import CHUNK_ELEMENTS, ArrayLike, BlockFactor, Role, Shapes, WireBlock, as_operand, gram_of
from tngd.spu.v1 import spu_pb2 as pb


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
        """A v."""
        return (v.to(self.a.dtype) @ self.a.T).to(v.dtype)

    def adjoint(self, w: Tensor) -> Tensor:
        """Aᵀ w."""
        return (w.to(self.a.dtype) @ self.a).to(w.dtype)

    def gram(self) -> Tensor:
        """A Aᵀ, over stretches of columns so that no float64 copy of A is made."""
        m, n = self.a.shape
        return gram_of(self.a.split(max(1, min(n, CHUNK_ELEMENTS // m)), dim=1), m)

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
