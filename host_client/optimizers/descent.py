"""The update of all parameters in one step, within the trust region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from host_client.optimizers.change import Change
from host_client.optimizers.rules import State, update
from host_client.optimizers.trust_region import TrustRegion


def descend(
    groups: Sequence[Mapping[str, Any]],
    directions: Sequence[Mapping[Tensor, Tensor]],
    gradients: Mapping[Tensor, Tensor],
    state: State,
    change: Change,
    region: TrustRegion | None,
) -> bool:
    """Update the parameters along the directions, one after the other, and those left to Adam along their gradients.

    Args:
        groups: all parameter groups.
        directions: g̃ of each parameter with a natural gradient.
        gradients: ∇ℓ of each parameter left to Adam.
        state: what the rules keep; changed.
        change: that of these parameters, made before the update.
        region: what bounds the update along all the directions together; None for no bound.

    Returns:
        Whether the trust region has shortened the update, and the momentum with it.

    Raises:
        FloatingPointError: see `TrustRegion.fraction`.
    """
    natural = [group for group in groups if not group["adam"]]
    descent: dict[Tensor, Tensor] = {}
    for direction in directions:
        for group in natural:
            along = update(group, direction, state)
            if region is not None:
                for p, u in along.items():
                    descent[p] = descent.get(p, 0.0) - float(group["lr"]) * u
    fraction = 1.0
    if region is not None:
        whole = change.difference()
        decayed = any(group["weight_decay"] for group in natural)
        fraction = region.fraction(whole if decayed else descent, descent)
    if fraction < 1.0:
        change.shorten(whole, fraction)
        change.shorten_momentum(fraction)
    for group in groups:
        if group["adam"]:
            update(group, gradients, state)
    return fraction < 1.0
