"""Damping that follows how well the quadratic model predicts the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from host_client.optimizers.trust_region import Curved, quadratic


@dataclass(frozen=True)
class LevenbergMarquardt:
    """The Levenberg–Marquardt rule: λ shrinks when ρ > a and grows when ρ < 1 − a, ρ = actual / predicted decrease.

    The predicted decrease is that of the undamped model of the loss, the actual one is measured on the same batch, with
    the same random numbers, so it costs one more evaluation of the closure every `every` steps. With a line search both
    are those of the whole step, before any halving, and cost no evaluation more.

    Attributes:
        every: steps from one adaptation to the next, at least 1; the step of number `every` − 1 is the first.
        grow: factor on λ where the model predicts too much, above 1.
        shrink: factor on λ where it predicts well, in (0, 1). The defaults of the two are (19/20)^∓5, the rule of
            Martens and Grosse (arXiv 1503.05671, section 6.5) for every fifth step.
        threshold: a, in [1/2, 1): λ stays for ρ in [1 − a, a].
        min: min λ, above 0.
        max: max λ, above `min`.

    Raises:
        ValueError: for a field out of its range.
    """

    every: int = 5
    grow: float = (20 / 19) ** 5
    shrink: float = (19 / 20) ** 5
    threshold: float = 0.75
    min: float = 1e-8
    max: float = 1e3

    def __post_init__(self) -> None:
        ranges: list[tuple[str, bool, str]] = [
            ("every", isinstance(self.every, int) and self.every >= 1, "a whole number of at least 1"),
            ("grow", 1.0 < self.grow < math.inf, "above 1"),
            ("shrink", 0.0 < self.shrink < 1.0, "above 0 and below 1"),
            ("threshold", 0.5 <= self.threshold < 1.0, "at least 1/2 and below 1"),
            ("min", 0.0 < self.min < math.inf, "above 0"),
            ("max", self.min < self.max < math.inf, f"above min, which is {self.min}"),
        ]
        for name, right, expected in ranges:
            if not right:
                raise ValueError(f"Invalid {name}: {getattr(self, name)}; it must be {expected}")

    def due(self, step: int) -> bool:
        """Return whether λ is adapted after the step of this number, from 0."""
        return step % self.every == self.every - 1

    def adapt(self, damping: float, ratio: float) -> float:
        """λ for the next steps, within [min, max].

        Args:
            damping: λ until now.
            ratio: ρ; one that is not a number counts as a prediction that has failed.
        """
        if ratio > self.threshold:
            damping *= self.shrink
        elif not ratio >= 1.0 - self.threshold:
            damping *= self.grow
        return min(max(damping, self.min), self.max)


def predicted_decrease(operator: Curved, gradient: Tensor, change: Tensor) -> float:
    """−(gᵀΔ + ½ ΔᵀFΔ), by how much the loss falls if it is what its gradient and curvature say.

    Args:
        operator: F, without damping.
        gradient: g, shape (N,).
        change: Δ, what was added to the parameters, shape (N,).
    """
    return -(float(gradient @ change) + 0.5 * quadratic(operator, change))


def ratio(before: float, after: float, predicted: float) -> float:
    """ρ = (ℓ(θ) − ℓ(θ + Δ)) / predicted decrease; −∞ where no decrease was predicted, for then the step was too long.

    Args:
        before: ℓ(θ).
        after: ℓ(θ + Δ); a loss that is not finite gives −∞ too.
        predicted: what `predicted_decrease` says.
    """
    if not (predicted > 0.0 and math.isfinite(after)):
        return -math.inf
    return (before - after) / predicted
