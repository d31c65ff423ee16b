"""The ordinary loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.cases import Problem


def train(problem: Problem, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Train as the README does; the losses."""
    losses = []
    for _ in range(steps):
        loss = problem.criterion(problem.model(problem.inputs), problem.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def flat(model: nn.Module) -> Tensor:
    """A copy of all parameters, one after the other."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def same(a: Any, b: Any) -> bool:
    """Whether two state dictionaries have the same values, to the bit, and the same keys in the same order."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
