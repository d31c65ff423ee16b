"""Parameters side by side, as one vector of N elements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from host_client.curvature.errors import Diverged
from spu_link.values import all_finite


def gradient_of(parameters: Iterable[tuple[str, nn.Parameter]]) -> Tensor:
    """Return the gradients of parameters as a new vector of shape (N,), in float32 at least; 0 where there is none.

    Args:
        parameters: with their paths.
    """
    gradients = [p.new_zeros(p.numel()) if p.grad is None else dense_gradient(p).flatten() for _, p in parameters]
    joined = torch.cat(gradients)
    return joined.to(torch.promote_types(joined.dtype, torch.float32))


def dense_gradient(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter that has one, as a dense tensor."""
    assert parameter.grad is not None
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad


def vector_of(pieces: Mapping[Tensor, Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return pieces of parameters as a vector of shape (N,), in float32 at least; 0 where there is none."""
    joined = torch.cat([pieces[p].flatten().to(p) if p in pieces else p.new_zeros(p.numel()) for p in parameters])
    return joined.to(torch.promote_types(joined.dtype, torch.float32))


def parts_of(vector: Tensor, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """A vector of shape (N,) in pieces with the shape, dtype and device of the parameters."""
    if len({p.device for p in parameters}) == 1:
        vector = vector.to(parameters[0].device)  # at once: from the host, each copy is waited for
    pieces = vector.split([p.numel() for p in parameters])
    return {p: piece.view_as(p).to(p) for p, piece in zip(parameters, pieces, strict=True)}


def kept_vector(name: str, parameters: Sequence[Tensor], state: Mapping[Tensor, Mapping[str, Any]]) -> Tensor:
    """Return what is kept of all parameters under a name as a vector of shape (N,); 0 where there is nothing."""
    return vector_of({p: state[p][name] for p in parameters if name in state.get(p, {})}, parameters)


def rates_of(groups: Iterable[Mapping[str, Any]], parameters: Sequence[Tensor]) -> Tensor:
    """The learning rate of all parameters, shape (), or if they differ that of each element, shape (N,); float64."""
    of = {p: float(group["lr"]) for group in groups for p in group["params"]}
    rates = torch.tensor([of[p] for p in parameters], dtype=torch.float64)
    if (rates == rates[0]).all():
        return rates[0]
    return rates.repeat_interleave(torch.tensor([p.numel() for p in parameters]))


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
