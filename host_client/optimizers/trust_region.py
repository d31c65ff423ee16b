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


def scale(operator: Curved, change: Tensor, damping: float, radius: float) -> float:
    """Return the factor in (0, 1] that keeps a change Δ within ½ Δᵀ(F + λI)Δ ≤ δ: min(1, √(2δ / Δᵀ(F + λI)Δ)).

    Where F is the Fisher matrix of the mean log-likelihood, ½ ΔᵀFΔ is to leading order in Δ the Kullback–Leibler
    divergence of the model's predictions after the step from those before it, averaged over the batch; so δ bounds it.
    The term λ ‖Δ‖² bounds what F of one batch does not see: F has no more rows than the batch has outputs, and
    momentum of earlier batches, weight decay and the noise of a device lie outside of its range. Without them, with
    Δ = −η (F + λI)⁻¹∇ℓ, the left side is ½ η² g̃ᵀ∇ℓ, the norm that K-FAC clips (kfac-jax, arXiv 1503.05671).

    Args:
        operator: F, N columns, without damping.
        change: Δ, shape (N,).
        damping: λ ≥ 0.
        radius: δ > 0.

    Raises:
        FloatingPointError: when a value of the change is not finite, or so large that its square is not.
    """
    square = quadratic(operator, change) + damping * float(change @ change)
    if not math.isfinite(square):
        raise FloatingPointError(f"the change has a squared norm of {square}, so no trust region can bound it")
    return 1.0 if square <= 2.0 * radius else math.sqrt(2.0 * radius / square)
