"""A step tried on the batch that it was made for: shortened by a line search, and judged for the damping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from host_client.optimizers.change import Change
from host_client.optimizers.levenberg_marquardt import LevenbergMarquardt, predicted_decrease, ratio
from host_client.optimizers.line_search import LineSearch
from host_client.optimizers.replay import Reevaluation
from host_client.optimizers.trust_region import Curved
from host_client.optimizers.vectors import dense_gradient, gradient_of, vector_of


def check_closure(name: str, closure: Callable[[], float] | None) -> None:
    """Refuse to go on without a closure.

    Raises:
        RuntimeError: saying that the option of this name needs one.
    """
    if closure is None:
        raise RuntimeError(
            f"{name} compares the losses before and after a step: give step(closure), with a closure that evaluates "
            "the model, computes gradients and returns the loss"
        )


class Trial:
    """The losses after a whole update and after fractions of it, each evaluated once.

    Args:
        change: the whole update, which has been made.
        again: evaluates the loss.
        before: ℓ(θ), the loss before the update.
        parameters: all parameters that the closure computes gradients of.
        counts: where ``"loss evaluations"``, ``"no decrease"`` and changes of the damping are counted.
    """

    def __init__(
        self, change: Change, again: Reevaluation, before: float, parameters: Iterable[Tensor], counts: Counter[str]
    ) -> None:
        self._change, self._again, self._before, self._counts = change, again, before, counts
        self._parameters = list(parameters)
        self._whole = change.difference()
        self._losses: dict[float, float] = {}

    def search(self, rule: LineSearch) -> float:
        """Shorten the update until the loss decreases, and the momentum with it; return the fraction left.

        Where no fraction lowers the loss, it is 0: the parameters are restored, and the momentum starts anew.
        """
        fraction = rule.search(self._before, self._loss_after)
        if fraction < 1.0:
            self._change.shorten(self._whole, fraction)
            self._change.shorten_momentum(fraction)
        self._counts["no decrease"] += fraction == 0.0
        return fraction

    def adapt(
        self,
        rule: LevenbergMarquardt,
        group: MutableMapping[str, Any],
        operator: Curved,
        natural: Sequence[tuple[str, nn.Parameter]],
    ) -> None:
        """Adapt the damping to how well the decrease of the loss by the whole update was predicted.

        Args:
            rule: how.
            group: where the damping is.
            operator: F of the parameters with a natural gradient; the others are taken to have no curvature.
            natural: which these are, with their paths, in the order of F.
        """
        order: list[Tensor] = [p for _, p in natural]
        linear = sum(float((dense_gradient(p) * self._whole[p]).sum()) for p in self._whole.keys() - set(order))
        gradient = gradient_of(natural)
        predicted = predicted_decrease(operator, gradient, vector_of(self._whole, order).to(gradient)) - linear
        damping = group["damping"]
        group["damping"] = rule.adapt(damping, ratio(self._before, self._loss_after(1.0), predicted))
        if group["damping"] != damping:
            self._counts["damping grown" if group["damping"] > damping else "damping shrunk"] += 1

    def _loss_after(self, fraction: float) -> float:
        """Return ℓ(θ + fraction · Δ). The whole update is the first to be asked for, while it is in place."""
        if fraction not in self._losses:
            if fraction < 1.0:
                self._change.shorten(self._whole, fraction)
            self._losses[fraction] = self._again.loss(self._parameters)
            self._counts["loss evaluations"] += 1
        return self._losses[fraction]
