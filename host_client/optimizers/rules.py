"""How parameters are changed once their directions are known: SGD with momentum, or Adam."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

State = MutableMapping[Tensor, dict[str, Any]]
"""What is kept of each parameter from step to step, as in `torch.optim.Optimizer.state`."""

RULE_STATE = frozenset({"momentum_buffer", "step", "exp_avg", "exp_avg_sq"})
"""The names of what the rules here keep."""


def update(group: Mapping[str, Any], directions: Mapping[Tensor, Tensor], state: State) -> dict[Tensor, Tensor]:
    """Change the parameters of one group, with decoupled weight decay: first θ ← θ − η·wd·θ.

    A group with ``betas`` then has Adam's rule (arXiv 1412.6980), with the direction in the place of the gradient;
    the others u ← β u + g̃, θ ← θ − η u, as in `torch.optim.SGD`. With betas (0, 0) Adam's rule is
    θ ← θ − η g̃ / (|g̃| + ε), elementwise.

    Args:
        group: a parameter group; its parameters without a direction stay as they are.
        directions: g̃ of each parameter, in its shape; left as they are.
        state: momentum and moments; changed.

    Returns:
        What each parameter was moved along by the rule of SGD, u or g̃; it may change with the next update. Empty for
        Adam's rule.
    """
    parameters = [p for p in group["params"] if p in directions]
    if not parameters:
        return {}
    along = [directions[p] for p in parameters]
    if "betas" in group:
        _adam(group, parameters, along, state)
        return {}
    return dict(zip(parameters, _sgd(group, parameters, along, state), strict=True))


def _sgd(group: Mapping[str, Any], parameters: list[Tensor], along: list[Tensor], state: State) -> list[Tensor]:
    lr, momentum, decay = float(group["lr"]), group["momentum"], group["weight_decay"]
    if momentum:
        along = _averaged(parameters, along, momentum, state)
    if decay:
        torch._foreach_mul_(parameters, 1.0 - lr * decay)
    torch._foreach_add_(parameters, along, alpha=-lr)
    return along


def _averaged(parameters: list[Tensor], along: list[Tensor], momentum: float, state: State) -> list[Tensor]:
    """The momentum u of each parameter, brought up to date; it is the direction itself at first."""
    moving = [(p, d) for p, d in zip(parameters, along, strict=True) if "momentum_buffer" in state[p]]
    if moving:
        buffers = [state[p]["momentum_buffer"] for p, _ in moving]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, [direction for _, direction in moving])
    for p, direction in zip(parameters, along, strict=True):
        if "momentum_buffer" not in state[p]:
            state[p]["momentum_buffer"] = direction.clone()
    return [state[p]["momentum_buffer"] for p in parameters]


def _adam(group: Mapping[str, Any], parameters: list[Tensor], along: list[Tensor], state: State) -> None:
    states = [state[p] for p in parameters]
    for p, one in zip(parameters, states, strict=True):
        if "exp_avg" not in one:
            one["step"] = torch.zeros(())
            one["exp_avg"], one["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
    beta1, beta2 = group["betas"]
    adam(
        parameters,
        along,
        [one["exp_avg"] for one in states],
        [one["exp_avg_sq"] for one in states],
        [],
        [one["step"] for one in states],
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=float(group["lr"]),
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
        decoupled_weight_decay=True,
    )
