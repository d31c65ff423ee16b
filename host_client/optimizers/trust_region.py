"""A bound on how far one step moves what the model predicts."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from spu_link.operators import FactorOperator


class Curved(Protocol):
    """What is asked of a curvature F."""

    def curvature(self, v: Tensor) -> Tensor:
        """Product F v for `v` of shape (N,)."""
        ...


def quadratic(operator: Curved, v: Tensor) -> float:
    """vᵀ F v for `v` of shape (N,), in the dtype of `v`; as ‖A v‖² where F = AᵀA is held as A."""
    if isinstance(operator, FactorOperator):
        image = operator.apply(v)
        return float(image @ image)
    return float(v @ operator.curvature(v))


def scale(operator: Curved, direction: Tensor, lr: float | Tensor, radius: float) -> float:
    """The factor in (0, 1] that keeps the step Δ = −η x within ½ ΔᵀFΔ ≤ δ: min(1, √(2δ / (η² xᵀFx))).

    Where F is the Fisher matrix of the mean log-likelihood, ½ ΔᵀFΔ is to leading order in Δ the Kullback–Leibler
    divergence of the model's predictions after the step from those before it, averaged over the batch.

    Args:
        operator: F, N columns, without damping.
        direction: x, shape (N,).
        lr: η ≥ 0, or one for each parameter, shape (N,).
        radius: δ > 0.

    Raises:
        FloatingPointError: when a value of the direction is not finite, or so large that its square is not; no factor
            makes a step of it.
    """
    square = quadratic(operator, direction * lr)
    if not math.isfinite(square):
        raise FloatingPointError(
            f"the step has a squared curvature norm of {square}, so no trust region can bound it; the direction holds "
            "values that are not finite or far too large: raise the damping"
        )
    return 1.0 if square <= 2.0 * radius else math.sqrt(2.0 * radius / square)
