"""The change of the parameters by one step: as long as the rules make it, shortened, or undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from host_client.optimizers.rules import RULE_STATE, State, update
from host_client.optimizers.trust_region import TrustRegion


class Change:
    """The change of parameters, and of what the update rules keep of them, from the moment that this is made.

    Args:
        parameters: those that the step will change.
        state: what the rules keep of each parameter.
    """

    def __init__(self, parameters: Sequence[Tensor], state: State) -> None:
        self._parameters, self._state = list(parameters), state
        self._before = [p.detach().clone() for p in self._parameters]
        self._kept = [
            {name: value.clone() for name, value in state.get(p, {}).items() if name in RULE_STATE}
            for p in self._parameters
        ]

    def descend(
        self,
        groups: Sequence[Mapping[str, Any]],
        directions: Sequence[Mapping[Tensor, Tensor]],
        gradients: Mapping[Tensor, Tensor],
        region: TrustRegion | None,
    ) -> bool:
        """Update the parameters along the directions, one after the other, those left to Adam along their gradients.

        Args:
            groups: all parameter groups.
            directions: g̃ of each parameter with a natural gradient.
            gradients: ∇ℓ of each parameter left to Adam.
            region: what bounds the update along all the directions together; None for no bound.

        Returns:
            Whether the trust region has shortened the update, and the momentum with it.

        Raises:
            Diverged: see `TrustRegion.fraction`.
        """
        natural = [group for group in groups if not group["adam"]]
        descent: dict[Tensor, Tensor] = {}
        for direction in directions:
            for group in natural:
                along = update(group, direction, self._state)
                if region is not None:
                    for p, u in along.items():
                        descent[p] = descent.get(p, 0.0) - float(group["lr"]) * u
        fraction = 1.0
        if region is not None:
            whole = self.difference()
            decayed = any(group["weight_decay"] for group in natural)
            fraction = region.fraction(whole if decayed else descent, descent)
        if fraction < 1.0:
            self.shorten(whole, fraction)
            self.shorten_momentum(fraction)
        for group in groups:
            if group["adam"]:
                update(group, gradients, self._state)
        return fraction < 1.0

    def difference(self) -> dict[Tensor, Tensor]:
        """Δ of each parameter: its value now minus its value before."""
        return dict(zip(self._parameters, torch._foreach_sub(self._parameters, self._before), strict=True))  # noqa: SLF001 - torch has no public one

    def shorten(self, difference: dict[Tensor, Tensor], fraction: float) -> None:
        """Put the parameters at θ + fraction · Δ.

        Args:
            difference: Δ of each parameter, as `difference` gave it.
            fraction: in [0, 1].
        """
        torch._foreach_copy_(self._parameters, self._before)
        if fraction:
            torch._foreach_add_(self._parameters, [difference[p] for p in self._parameters], alpha=fraction)

    def shorten_momentum(self, fraction: float) -> None:
        """Scale the momentum like the update that it made, so that it does not grow where updates are bounded."""
        kept = [self._state.get(p, {}) for p in self._parameters]
        buffers = [state["momentum_buffer"] for state in kept if "momentum_buffer" in state]
        if buffers:
            torch._foreach_mul_(buffers, fraction)

    def undo(self) -> None:
        """Restore parameters, momentum and moments to their former values."""
        torch._foreach_copy_(self._parameters, self._before)
        for p, kept in zip(self._parameters, self._kept, strict=True):
            now = self._state.get(p, {})
            for name in RULE_STATE & now.keys():
                del now[name]
            now.update(kept)
