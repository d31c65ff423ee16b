"""Vectors of the parameters that are not finite, reported before they do harm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from host_client.curvature.errors import Diverged
from spu_link.values import all_finite


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
