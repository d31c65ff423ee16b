"""Binary cross-entropy of logits: the likelihood of a coin with heads' probability σ(z)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from host_client.curvature.losses.base import Loss, at_least_zero


class BinaryCrossEntropy(Loss):
    """`nn.BCEWithLogitsLoss`: each output is an element with Hessian mass σ(z) (1 − σ(z)).

    With target t, ``weight`` w and ``pos_weight`` a, mass = w (1 + (a − 1) t).
    """

    criterion = nn.BCEWithLogitsLoss

    def check(self, criterion: Any) -> None:
        """Besides, refuse negative weights."""
        super().check(criterion)
        at_least_zero("weight", criterion.weight)
        at_least_zero("pos_weight", criterion.pos_weight)

    def weights(self, criterion: Any, z: Tensor, target: Tensor) -> tuple[Tensor | None, Tensor | float]:
        """Mass from the weights, which broadcast; the mean is over all outputs, whatever they weigh."""
        mass: Tensor | None = None
        if criterion.pos_weight is not None:
            mass = 1 + (criterion.pos_weight.to(z.dtype) - 1) * target
        if criterion.weight is not None:
            mass = criterion.weight.to(z.dtype) * (1 if mass is None else mass)
        return None if mass is None else mass.expand_as(z), float(z.numel())

    def root(self, z: Tensor, mass: Tensor) -> Tensor:
        """One column, √(mass σ(z) σ(−z))."""
        return (z.sigmoid() * z.neg().sigmoid_()).mul_(mass[..., None]).sqrt_()[None]

    def scores(self, z: Tensor, mass: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """σ(z) − ŷ with ŷ ∈ {0, 1} drawn, times √mass."""
        p = z.sigmoid()
        heads = torch.rand(draws, *z.shape, dtype=z.dtype, device=z.device, generator=generator) < p
        return (p - heads.to(z.dtype)).mul_(mass.sqrt()[..., None])
