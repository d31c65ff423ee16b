"""The system by products with F alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from host_client.solvers.protocol import Info
from spu_link.operators import Operator

Product: TypeAlias = Callable[[Tensor], Tensor]
"""F v for a vector v of shape (N,), in the dtype of v."""


@dataclass(frozen=True)
class ConjugateGradients:
    """The method of conjugate gradients (Hestenes and Stiefel, 1952) as a `Solver`, started from x = 0.

    It stops at the first x with ‖b − (F + λI) x‖ ≤ tolerance · ‖b‖, after `iterations` iterations, or where a direction
    has no curvature left to divide by. An iteration takes O(mN) time for a factor of m rows.

    Attributes:
        iterations: max number of iterations, at least 1; the default is that of arXiv 2405.13817.
        tolerance: relative residual that is small enough, above 0.

    Raises:
        ValueError: for a field out of its range.
    """

    iterations: int = 200
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise ValueError(f"Invalid iterations: {self.iterations}; it must be a whole number, at least 1")
        if not self.tolerance > 0.0:
            raise ValueError(f"Invalid tolerance: {self.tolerance}; it must be more than 0")

    def __call__(self, operator: Operator | Product, drive: Tensor, damping: float) -> tuple[Tensor, Info]:
        """Solve (F + λI) x = b; F may also be a function that returns F v.

        Returns:
            x, in the dtype of the drive; and the number of ``iterations``, the relative ``residual`` as the iteration
            updates it (0 for b = 0), and whether it has ``converged`` to the tolerance.

        Raises:
            FloatingPointError: when a value of b or of a product is not finite.
        """
        product = operator.curvature if isinstance(operator, Operator) else operator
        x, residual, direction = torch.zeros_like(drive), drive.clone(), drive.clone()
        square = whole = float(drive @ drive)
        iterations = 0
        if not math.isfinite(whole):
            raise FloatingPointError("the drive holds values that are not finite, or far too large")

        def relative() -> float:
            return math.sqrt(square / whole) if whole > 0.0 else 0.0

        while relative() > self.tolerance and iterations < self.iterations:
            image = torch.add(product(direction), direction, alpha=damping)
            bend = float(direction @ image)
            if not math.isfinite(bend):
                raise FloatingPointError(
                    "a product with the curvature holds values that are not finite, or far too large"
                )
            if not bend > 0.0:
                break
            iterations += 1
            x.add_(direction, alpha=square / bend)
            residual.sub_(image, alpha=square / bend)
            before, square = square, float(residual @ residual)
            direction.mul_(square / before).add_(residual)
        info = {"iterations": iterations, "residual": relative(), "converged": relative() <= self.tolerance}
        return x, info
