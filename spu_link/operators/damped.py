"""F + λI."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from spu_link.operators.base import Operator, WireBlock, mismatch


class Damped(Operator):
    """F + λI for any operator F; what a natural-gradient solve inverts.

    Args:
        operator: F.
        damping: λ ≥ 0.

    Raises:
        InvalidProgram: when λ is negative or not finite.
    """

    kind = "damped"

    def __init__(self, operator: Operator, damping: float) -> None:
        if not (math.isfinite(damping) and damping >= 0):
            raise mismatch("damping", damping, "a finite number, at least 0")
        self.operator = operator
        self.damping = damping

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (N, N)."""
        n = self.operator.parameters
        return n, n

    @property
    def dtype(self) -> torch.dtype:
        """Element type of F's operands."""
        return self.operator.dtype

    def curvature(self, v: Tensor) -> Tensor:
        """(F + λI) v."""
        return self.operator.curvature(v) + self.damping * v

    def apply(self, v: Tensor) -> Tensor:
        """(F + λI) v."""
        return self.curvature(v)

    def adjoint(self, w: Tensor) -> Tensor:
        """(F + λI) w: it is symmetric."""
        return self.curvature(w)

    def gram(self) -> Tensor:
        """(F + λI)²: N × N, for tests and small problems."""
        dense = self.dense()
        return dense @ dense

    def dense(self) -> Tensor:
        """F + λI in full, float64: N × N, for tests and small problems."""
        identity = torch.eye(self.parameters, dtype=torch.float64)
        return self.operator.curvature(identity) + self.damping * identity

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same operator with `function` applied to F's operands."""
        return type(self)(self.operator.map(function), self.damping)

    def wire(self) -> list[WireBlock]:
        """F's blocks; λ travels as the program's damping."""
        return self.operator.wire()
