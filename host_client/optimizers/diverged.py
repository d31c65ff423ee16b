"""Training that has diverged, reported before it does harm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spu_link.values import all_finite


class Diverged(FloatingPointError):
    """A tensor of a step holds NaN or infinity; parameters and momentum are as they were before the step.

    A gradient is checked before it is sent to a device.

    Attributes:
        step: number of the step, from 1.
        tensor: what is not finite, for instance ``"gradient of 'conv1.weight'"``.
    """

    def __init__(self, step: int, tensor: str) -> None:
        super().__init__(step, tensor)
        self.step, self.tensor = step, tensor

    def __str__(self) -> str:
        return (
            f"step {self.step}: the {self.tensor} is not finite; check that inputs and loss are, and if so training "
            "has diverged: lower lr, raise damping or bound the steps with trust_region, and restart from a checkpoint"
        )


def check_finite(step: int, name: str, vector: Tensor, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Refuse a vector of the parameters that holds NaN or infinity.

    Args:
        step: number of the step, from 1.
        name: what the vector is, such as ``"gradient"``.
        vector: shape (N,).
        parameters: with their paths, in the order of the vector.

    Raises:
        Diverged: naming the first parameter that has such a value.
    """
    if all_finite(vector):
        return
    pieces = vector.split([parameter.numel() for _, parameter in parameters])
    for (path, _), piece in zip(parameters, pieces, strict=True):
        if not torch.isfinite(piece).all():
            raise Diverged(step, f"{name} of {path!r}")
