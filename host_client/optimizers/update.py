"""The update of the parameters along given directions: by the rule of SGD or Adam, shortened, or undone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from host_client.optimizers.trust_region import TrustRegion

State = MutableMapping[Tensor, dict[str, Any]]
"""State of each parameter from step to step, as in `torch.optim.Optimizer.state`."""

RULE_STATE = frozenset({"momentum_buffer", "step", "exp_avg", "exp_avg_sq"})
"""The names of what the rules here keep."""


def state_names(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of what the rule of a group keeps of each parameter, of those in `RULE_STATE`."""
    if "betas" in group:
        return ("step", "exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if group["momentum"] else ()


def complete(state: dict[str, Any], parameter: Tensor, names: Iterable[str]) -> None:
    """Add what is missing of a parameter's state as zeros, and let the rest follow it to another device or dtype.

    Args:
        state: what is kept of the parameter; changed.
        parameter: what has the shape, dtype and device. Zeros are contiguous whatever its layout, as safetensors needs.
        names: what is kept; ``step`` is a number on the CPU.
    """
    for name in names:
        if name == "step":
            state.setdefault(name, torch.zeros(()))
        elif name in state:
            state[name] = state[name].to(parameter)
        else:
            state[name] = torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)


def update(group: Mapping[str, Any], directions: Mapping[Tensor, Tensor], state: State) -> dict[Tensor, Tensor]:
    """Change the parameters of one group, with decoupled weight decay: first θ ← θ − η·wd·θ.

    A group with ``betas`` then has Adam's rule (arXiv 1412.6980), with the direction in the place of the gradient;
    the others u ← β u + g̃, θ ← θ − η u, as in `torch.optim.SGD`. With betas (0, 0) Adam's rule is
    θ ← θ − η g̃ / (|g̃| + ε), elementwise.

    Args:
        group: a parameter group; its parameters without a direction stay as they are.
        directions: g̃ of each parameter, in its shape; left as they are.
        state: momentum and moments; changed.

    Returns:
        What each parameter was moved along by the rule of SGD, u or g̃; it may change with the next update. Empty for
        Adam's rule.
    """
    parameters = [p for p in group["params"] if p in directions]
    if not parameters:
        return {}
    along, names = [directions[p] for p in parameters], state_names(group)
    for p in parameters:
        complete(state[p], p, names)
    if "betas" in group:
        _adam(group, parameters, along, state)
        return {}
    return dict(zip(parameters, _sgd(group, parameters, along, state), strict=True))


def _sgd(group: Mapping[str, Any], parameters: list[Tensor], along: list[Tensor], state: State) -> list[Tensor]:
    lr, momentum, decay = float(group["lr"]), group["momentum"], group["weight_decay"]
    if momentum:
        buffers = [state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, along)
        along = buffers
    if decay:
        torch._foreach_mul_(parameters, 1.0 - lr * decay)
    torch._foreach_add_(parameters, along, alpha=-lr)
    return along


def _adam(group: Mapping[str, Any], parameters: list[Tensor], along: list[Tensor], state: State) -> None:
    states = [state[p] for p in parameters]
    beta1, beta2 = group["betas"]
    adam(
        parameters,
        along,
        [entry["exp_avg"] for entry in states],
        [entry["exp_avg_sq"] for entry in states],
        [],
        [entry["step"] for entry in states],
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=float(group["lr"]),
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
        decoupled_weight_decay=True,
    )


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
