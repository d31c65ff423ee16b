"""A step tried on the batch that it was made for: shortened by a line search, and judged for the damping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from host_client.curvature.base import BaseCapture
from host_client.optimizers.levenberg_marquardt import LevenbergMarquardt, predicted_decrease, ratio
from host_client.optimizers.trust_region import Curved
from host_client.optimizers.update import Change
from host_client.optimizers.vectors import dense_gradient, gradient_of, vector_of
from host_client.random_state import RandomState, replay


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


class Trial:
    """The closure of a step called again after the parameters have changed: the same batch, the same random numbers.

    Made before the closure is called for the first time. Each loss is evaluated once.

    Args:
        model: what is trained; its buffers stay unchanged.
        closure: evaluates the model, computes gradients and returns the loss.
        capture: what is paused meanwhile; None where nothing is captured.
        line_search: how the update is shortened; None for not at all.
        adapt_damping: how the damping is adapted after this step; None for not at all.
        counts: where ``"loss evaluations"``, ``"no decrease"`` and changes of the damping are counted.
    """

    def __init__(
        self,
        model: nn.Module,
        closure: Callable[[], float | Tensor],
        capture: BaseCapture | None,
        line_search: LineSearch | None,
        adapt_damping: LevenbergMarquardt | None,
        counts: Counter[str],
    ) -> None:
        self._model, self._closure, self._capture, self._counts = model, closure, capture, counts
        self._line_search, self._adapt_damping = line_search, adapt_damping
        self._random = RandomState.now()

    def judge(
        self,
        change: Change,
        before: float,
        group: MutableMapping[str, Any],
        operator: Curved,
        natural: Sequence[tuple[str, nn.Parameter]],
    ) -> float:
        """Shorten an update by the line search, and the momentum with it; adapt the damping to the whole update.

        Where no fraction of the update lowers the loss, the parameters are restored, and the momentum starts anew.

        Args:
            change: the whole update, which has been made.
            before: ℓ(θ), the loss before the update.
            group: where the damping is.
            operator: F of the parameters with a natural gradient; the others are taken to have no curvature.
            natural: which these are, with their paths, in the order of F.

        Returns:
            The fraction of the update that is left.
        """
        whole = change.difference()
        losses: dict[float, float] = {}

        def loss_after(fraction: float) -> float:
            """Return ℓ(θ + fraction · Δ). The whole update is the first to be asked for, while it is in place."""
            if fraction not in losses:
                if fraction < 1.0:
                    change.shorten(whole, fraction)
                losses[fraction] = self._loss()
                self._counts["loss evaluations"] += 1
            return losses[fraction]

        fraction = 1.0
        if self._line_search is not None:
            fraction = self._line_search.search(before, loss_after)
            self._counts["no decrease"] += fraction == 0.0
        if fraction < 1.0:
            change.shorten(whole, fraction)
            change.shorten_momentum(fraction)
        if self._adapt_damping is not None:
            order: list[Tensor] = [p for _, p in natural]
            linear = sum(float((dense_gradient(p) * whole[p]).sum()) for p in whole.keys() - set(order))
            gradient = gradient_of(natural)
            predicted = predicted_decrease(operator, gradient, vector_of(whole, order).to(gradient)) - linear
            damping = group["damping"]
            group["damping"] = self._adapt_damping.adapt(damping, ratio(before, loss_after(1.0), predicted))
            if group["damping"] != damping:
                self._counts["damping grown" if group["damping"] > damping else "damping shrunk"] += 1
        return fraction

    def _loss(self) -> float:
        """Return the loss at the present parameters; gradients, buffers and random numbers are left as they are."""
        gradients = {p: p.grad for p in self._model.parameters()}
        for p in gradients:
            p.grad = None
        try:
            with _pause(self._capture), replay(self._model, self._random), torch.enable_grad():
                return number(self._closure())
        finally:
            for p, gradient in gradients.items():
                p.grad = gradient


def number(loss: Any) -> float:
    """Return what a closure returned as a number: a loss, or a tensor of one.

    Raises:
        TypeError: for anything else, such as None.
    """
    if loss is None:
        raise TypeError("the closure returned None; it must return the loss, a number or a tensor of one")
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


@contextmanager
def _pause(capture: BaseCapture | None) -> Iterator[None]:
    """Capture no forward pass within."""
    before = capture is not None and capture.paused
    if capture is not None:
        capture.paused = True
    try:
        yield
    finally:
        if capture is not None:
            capture.paused = before
