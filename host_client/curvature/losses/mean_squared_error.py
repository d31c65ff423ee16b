"""Mean squared error: ℓ(z) = (z − t)², the likelihood of a Gaussian of variance ½."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from host_client.curvature.losses.base import Loss


class MeanSquaredError(Loss):
    """`nn.MSELoss`: each output is an element with Hessian 2."""

    criterion = nn.MSELoss

    def weights(self, criterion: Any, z: Tensor, target: Tensor) -> tuple[Tensor | None, Tensor | float]:
        """Mass one; the mean is over all outputs."""
        return None, float(z.numel())

    def root(self, z: Tensor, mass: Tensor) -> Tensor:
        """One column, √(2 mass)."""
        return (2 * mass).sqrt()[None, ..., None].expand(1, *z.shape)

    def scores(self, z: Tensor, mass: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """2 (z − t̂) with t̂ normal about z with variance ½, times √mass."""
        noise = torch.randn(draws, *z.shape, dtype=z.dtype, device=z.device, generator=generator)
        return noise.mul_((mass * 2).sqrt()[..., None])
