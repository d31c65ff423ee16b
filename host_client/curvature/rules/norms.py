"""Normalisations: their weight scales the normalised input, their bias shifts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from host_client.curvature.rules.base import Operation, Rules
from host_client.curvature.rules.broadcast import Broadcast, Term, aligned


def _affine(
    shape: torch.Size,
    at: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    normalised: Callable[[torch.dtype], Tensor],
) -> Operation:
    roles, terms = {}, {}
    if weight is not None:
        roles["weight"], terms["weight"] = weight, Term(at, normalised)
    if bias is not None:
        roles["bias"], terms["bias"] = bias, Term(at)
    return Broadcast(roles, terms, shape)


def _channels(x: Tensor) -> tuple[int, ...]:
    return (1, x.shape[1], *[1] * (x.dim() - 2))


def _layer_norm(
    shape: torch.Size,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = False,
) -> Operation:
    x = input.detach()
    at = aligned(tuple(normalized_shape), x.dim())
    return _affine(
        shape, at, weight, bias, lambda dtype: F.layer_norm(x.to(dtype), list(normalized_shape), None, None, eps)
    )


def _rms_norm(
    shape: torch.Size,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Operation:
    x = input.detach()
    at = aligned(tuple(normalized_shape), x.dim())
    return _affine(shape, at, weight, None, lambda dtype: F.rms_norm(x.to(dtype), list(normalized_shape), None, eps))


def _group_norm(
    shape: torch.Size,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = False,
) -> Operation:
    x = input.detach()
    return _affine(
        shape, _channels(x), weight, bias, lambda dtype: F.group_norm(x.to(dtype), num_groups, None, None, eps)
    )


def _instance_norm(
    shape: torch.Size,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = False,
) -> Operation:
    x = input.detach()
    if use_input_stats:
        return _affine(shape, _channels(x), weight, bias, lambda dtype: F.instance_norm(x.to(dtype), eps=eps))
    return _affine(
        shape,
        _channels(x),
        weight,
        bias,
        lambda dtype: F.instance_norm(x.to(dtype), running_mean, running_var, use_input_stats=False, eps=eps),
    )


def _batch_norm(
    shape: torch.Size,
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Operation:
    """With the running statistics; with those of the batch it is refused before."""
    x = input.detach()
    return _affine(
        shape, _channels(x), weight, bias, lambda dtype: F.batch_norm(x.to(dtype), running_mean, running_var, eps=eps)
    )


def _native_batch_norm(
    shape: torch.Size,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Operation:
    return _batch_norm(shape, input, running_mean, running_var, weight, bias, training, momentum, eps)


RULES: Rules = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _native_batch_norm,
}
