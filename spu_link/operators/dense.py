"""F in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from spu_link.operators.base import ArrayLike, Operator, WireBlock, as_operand, mismatch
from spu_link.operators.gram import gram_of
from tngd.spu.v1 import spu_pb2 as pb


class Dense(Operator):
    """F given in full: symmetric positive semi-definite. Symmetry and definiteness are checked where it is loaded.

    Args:
        matrix: F, shape (N, N), float32 or float64.

    Raises:
        InvalidProgram: for another dtype or a matrix that is not square.
    """

    kind = "dense"

    def __init__(self, matrix: ArrayLike) -> None:
        self.matrix = as_operand(matrix, field="dense.matrix", dimensions=2)
        self.shape  # noqa: B018 - refuses a matrix that is not square

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (N, N)."""
        return self.shape_of(tuple(self.matrix.shape))

    @property
    def dtype(self) -> torch.dtype:
        """Element type of F."""
        return self.matrix.dtype

    def curvature(self, v: Tensor) -> Tensor:
        """F v."""
        return (v.to(self.matrix.dtype) @ self.matrix).to(v.dtype)

    def apply(self, v: Tensor) -> Tensor:
        """F v."""
        return self.curvature(v)

    def adjoint(self, w: Tensor) -> Tensor:
        """F w: F is symmetric."""
        return self.curvature(w)

    def gram(self) -> Tensor:
        """F Fᵀ."""
        return gram_of([self.matrix], self.shape[0])

    def dense(self) -> Tensor:
        """F."""
        return self.matrix

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same matrix after `function`."""
        return type(self)(function(self.matrix))

    def wire(self) -> list[WireBlock]:
        """One dense block."""
        return [(pb.Block(dense=pb.DenseBlock()), {pb.ROLE_MATRIX: self.matrix})]

    @staticmethod
    def shape_of(shape: tuple[int, ...]) -> tuple[int, int]:
        """The matrix's own shape.

        Raises:
            InvalidProgram: when it is not square.
        """
        rows, columns = shape
        if rows != columns:
            raise mismatch("dense.matrix", shape, "a square matrix (N, N)")
        return rows, columns
