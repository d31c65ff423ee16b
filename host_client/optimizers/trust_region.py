"""A bound on how far one step moves what the model predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from host_client.curvature.errors import Diverged
from host_client.optimizers.vectors import gradient_of, vector_of
from spu_link.operators import FactorOperator


class Curved(Protocol):
    """Protocol of a curvature F."""

    def curvature(self, v: Tensor) -> Tensor:
        """Product F v for `v` of shape (N,)."""
        ...


def quadratic(operator: Curved, v: Tensor) -> float:
    """vᵀ F v for `v` of shape (N,), in the dtype of `v`; as ‖A v‖² where F = AᵀA is held as A."""
    if isinstance(operator, FactorOperator):
        image = operator.apply(v)
        return float(image @ image)
    return float(v @ operator.curvature(v))


def damped_square(operator: Curved, damping: float, v: Tensor) -> float:
    """Return vᵀ(F + λI)v.

    Raises:
        FloatingPointError: when a value of `v` is not finite, or so large that its square is not.
    """
    square = quadratic(operator, v) + damping * float(v @ v)
    if not math.isfinite(square):
        raise FloatingPointError(f"the change has a squared norm of {square}, so no trust region can bound it")
    return square


def fraction_within(square: float, radius: float) -> float:
    """Return the factor in (0, 1] that keeps a change Δ within ½ Δᵀ(F + λI)Δ ≤ δ: min(1, √(2δ / Δᵀ(F + λI)Δ)).

    Where F is the Fisher matrix of the mean log-likelihood, ½ ΔᵀFΔ is to leading order in Δ the Kullback–Leibler
    divergence of the model's predictions after the step from those before it, averaged over the batch; so δ bounds it.
    The term λ ‖Δ‖² bounds what F of one batch does not see: F has no more rows than the batch has outputs, and
    momentum of earlier batches, weight decay and the noise of a device lie outside of its range. Without them, with
    Δ = −η (F + λI)⁻¹∇ℓ, the left side is ½ η² g̃ᵀ∇ℓ, the norm that K-FAC clips (kfac-jax, arXiv 1503.05671).

    Args:
        square: Δᵀ(F + λI)Δ of the whole update.
        radius: δ > 0.
    """
    return 1.0 if square <= 2.0 * radius else math.sqrt(2.0 * radius / square)


def fraction_to_minimum(square: float, decrease: float) -> float:
    """Return the factor in [0, 1] that keeps a change Δ from going beyond the minimum of the quadratic model along it.

    The model is ∇ℓᵀΔ + ½ Δᵀ(F + λI)Δ, so the factor is −∇ℓᵀΔ / Δᵀ(F + λI)Δ: 1/η for Δ = −η (F + λI)⁻¹∇ℓ with η ≥ 1, and
    0 where momentum points uphill on this batch.

    Args:
        square: Δᵀ(F + λI)Δ of the update without weight decay, which is no part of the loss.
        decrease: −∇ℓᵀΔ.
    """
    return 1.0 if decrease >= square else max(0.0, decrease / square)


@dataclass(frozen=True)
class TrustRegion:
    """A bound on the update of the parameters with a natural gradient.

    Attributes:
        operator: F, without damping.
        parameters: with their paths, in the order of F.
        damping: λ ≥ 0.
        radius: δ > 0.
        step: number of the step, from 1.
    """

    operator: Curved
    parameters: Sequence[tuple[str, nn.Parameter]]
    damping: float
    radius: float
    step: int

    def fraction(self, change: Mapping[Tensor, Tensor], descent: Mapping[Tensor, Tensor]) -> float:
        """Return the fraction of a change that is within the radius and not beyond the minimum of the model.

        Args:
            change: Δ of each parameter; 0 where there is none.
            descent: Δ without weight decay; it may be the same object.

        Raises:
            Diverged: when the change is so large that it cannot be bounded.
        """
        order: list[Tensor] = [p for _, p in self.parameters]
        without = vector_of(descent, order)
        whole = without if change is descent else vector_of(change, order)
        try:
            descent_square = damped_square(self.operator, self.damping, without)
            square = descent_square if change is descent else damped_square(self.operator, self.damping, whole)
        except FloatingPointError as error:
            raise Diverged(self.step, "length of the update") from error
        decrease = -float(gradient_of(self.parameters) @ without)
        return min(fraction_within(square, self.radius), fraction_to_minimum(descent_square, decrease))
