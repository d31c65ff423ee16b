"""Parameters side by side, as one vector of N elements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def gradient_of(parameters: Iterable[tuple[str, nn.Parameter]]) -> Tensor:
    """The gradients of parameters, given with their paths, as a new vector of shape (N,), in float32 at least.

    Raises:
        RuntimeError: when one has none, or a sparse one.
    """
    gradients = []
    for path, parameter in parameters:
        if parameter.grad is None:
            raise RuntimeError(f"parameter {path!r} has no gradient: call loss.backward() before step()")
        check_dense(path, parameter)
        gradients.append(parameter.grad.flatten())
    joined = torch.cat(gradients)
    return joined.to(torch.promote_types(joined.dtype, torch.float32))


def check_dense(path: str, parameter: Tensor) -> None:
    """Refuse a sparse gradient.

    Raises:
        RuntimeError: naming the parameter.
    """
    if parameter.grad is not None and parameter.grad.is_sparse:
        raise RuntimeError(f"parameter {path!r} has a sparse gradient: make its embedding with sparse=False")


def parts_of(vector: Tensor, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """A vector of shape (N,) in pieces with the shape, dtype and device of the parameters."""
    pieces = vector.split([p.numel() for p in parameters])
    return {p: piece.view_as(p).to(p) for p, piece in zip(parameters, pieces, strict=True)}


def rates_of(groups: Iterable[Mapping[str, Any]], parameters: Sequence[Tensor]) -> Tensor:
    """The learning rate of all parameters, shape (), or if they differ that of each element, shape (N,); float64."""
    of = {p: float(group["lr"]) for group in groups for p in group["params"]}
    rates = torch.tensor([of[p] for p in parameters], dtype=torch.float64)
    if (rates == rates[0]).all():
        return rates[0]
    return rates.repeat_interleave(torch.tensor([p.numel() for p in parameters]))
