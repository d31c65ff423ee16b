"""F in full."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from spu_link.errors import mismatch
from spu_link.operators.base import ArrayLike, BlockOperator, Geometry, Shapes


class Dense(BlockOperator):
    """F given in full: symmetric positive semi-definite. Symmetry and definiteness are checked where it is loaded.

    Args:
        matrix: F, shape (N, N), float32 or float64.

    Raises:
        InvalidProgram: for another dtype or a matrix that is not square.
    """

    kind = "dense"
    dimensions: ClassVar = {"matrix": (2,)}

    def __init__(self, matrix: ArrayLike) -> None:
        (self.matrix,) = self._hold(matrix)

    def curvature(self, v: Tensor) -> Tensor:
        """F v."""
        return (v.to(self.matrix.dtype) @ self.matrix).to(v.dtype)

    def dense(self) -> Tensor:
        """F."""
        return self.matrix

    @classmethod
    def shape_of(cls, geometry: Geometry, shapes: Shapes) -> tuple[int, int]:
        """The matrix's own shape.

        Raises:
            InvalidProgram: when it is not square.
        """
        rows, columns = shapes["matrix"]
        if rows != columns:
            raise mismatch("dense.matrix", shapes["matrix"], "a square matrix (N, N)")
        return rows, columns
