"""The change of the parameters by one step: as long as the rules make it, shortened, or undone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from host_client.optimizers.rules import RULE_STATE, State


class Change:
    """The change of parameters, and of what the update rules keep of them, from the moment that this is made.

    Args:
        parameters: those that the step will change.
        state: what is kept of each parameter.
    """

    def __init__(self, parameters: Sequence[Tensor], state: State) -> None:
        self._parameters, self._state = list(parameters), state
        self._before = [p.detach().clone() for p in self._parameters]
        self._kept = [
            {name: value.clone() for name, value in state.get(p, {}).items() if name in RULE_STATE}
            for p in self._parameters
        ]

    def difference(self) -> dict[Tensor, Tensor]:
        """Δ of each parameter: what it is now minus what it was."""
        return dict(zip(self._parameters, torch._foreach_sub(self._parameters, self._before), strict=True))

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
        buffers = [one["momentum_buffer"] for one in kept if "momentum_buffer" in one]
        if buffers:
            torch._foreach_mul_(buffers, fraction)

    def undo(self) -> None:
        """Make parameters, momentum and moments what they were."""
        torch._foreach_copy_(self._parameters, self._before)
        for p, kept in zip(self._parameters, self._kept, strict=True):
            now = self._state.get(p, {})
            for name in RULE_STATE & now.keys():
                del now[name]
            now.update(kept)
