"""SPRING (arXiv 2401.10190): momentum by the drive, (F + λI) g̃ₖ = ∇ℓ + λ μ g̃ₖ₋₁."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from host_client.optimizers.update import State
from host_client.optimizers.vectors import parts_of, vector_of


def spring_drive(gradient: Tensor, weight: float, parameters: Sequence[tuple[str, Tensor]], state: State) -> Tensor:
    """Return ∇ℓ + λ μ g̃ₖ₋₁, shape (N,); g̃ₖ₋₁ is 0 at first, and for parameters without a gradient.

    Args:
        gradient: ∇ℓ, shape (N,).
        weight: λ μ.
        parameters: with their paths, in the order of the gradient.
        state: what is kept of each parameter.
    """
    previous = {p: state[p]["spring"] for _, p in parameters if p.grad is not None and "spring" in state.get(p, {})}
    if not previous or not weight:
        return gradient
    return gradient + weight * vector_of(previous, [p for _, p in parameters]).to(gradient)


def keep_direction(direction: Tensor | None, parameters: Sequence[tuple[str, Tensor]], state: State) -> None:
    """Keep g̃ₖ for the next drive, of the parameters that have a gradient; None to start anew."""
    order = [p for _, p in parameters]
    parts = None if direction is None else parts_of(direction, order)
    for p in order:
        if p.grad is None:
            continue
        state.get(p, {}).pop("spring", None)
        if parts is not None:
            state[p]["spring"] = parts[p].clone()  # not a view into the whole
