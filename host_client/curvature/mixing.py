"""Functions that mix the samples of a batch, so that no sample has Jacobian rows of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

State = Sequence[Tensor]
"""Tensors of the module that called a function, by which it can be found."""


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> State | None:
    return [t for t in (running_mean, running_var, weight, bias) if t is not None] if training else None


def _native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    *options: object,
) -> State | None:
    return _batch_norm(input, running_mean, running_var, weight, bias, training)


MIXING: dict[Any, Callable[..., State | None]] = {F.batch_norm: _batch_norm, torch.batch_norm: _native_batch_norm}
"""By function: called as it is, gives the state of the module if samples are mixed, and None if they are not."""


def path_of_batch_norm(model: nn.Module, state: State) -> tuple[str, str]:
    """Dotted path and class of the batch normalisation with this state; of the likeliest one where it has none."""
    norms = [(path, module) for path, module in model.named_modules() if isinstance(module, _BatchNorm)]
    given = {id(t) for t in state}
    for path, module in norms:
        if given & {id(t) for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))}:
            return path, type(module).__name__
    for path, module in norms:
        if not given and module.running_mean is None:
            return path, type(module).__name__
    return "", "batch_norm"
