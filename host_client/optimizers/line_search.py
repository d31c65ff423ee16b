"""Step halving: a step is shortened until it lowers the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class LineSearch:
    """Halve a step until the loss of the same batch, with the same random numbers, is less than before the step.

    The steps tried are Δ, Δ/2, Δ/4, …, where Δ is the whole update at the learning rate, weight decay and groups left
    to Adam included, within the trust region if there is one; the first that lowers the loss is taken. The grid is that
    of energy natural gradient descent (arXiv 2302.13163). Each trial costs one evaluation of the closure.

    Attributes:
        halvings: max number of halvings, at least 0. With 0 a step is taken whole or not at all.

    Raises:
        ValueError: for a field out of its range.
    """

    halvings: int = 30

    def __post_init__(self) -> None:
        if isinstance(self.halvings, bool) or not isinstance(self.halvings, int) or self.halvings < 0:
            raise ValueError(f"Invalid halvings: {self.halvings}; it must be a whole number, at least 0")

    def search(self, before: float, loss_after: Callable[[float], float]) -> float:
        """Return the largest fraction 2⁻ᵏ of the step that lowers the loss; 0 where none does.

        Args:
            before: ℓ(θ).
            loss_after: ℓ(θ + fraction · Δ). A loss that is not a number is no decrease.
        """
        for halvings in range(self.halvings + 1):
            fraction = 0.5**halvings
            if loss_after(fraction) < before:
                return fraction
        return 0.0
