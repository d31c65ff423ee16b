"""The ordinary loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from host_client import NGD, ConjugateGradients, solve_dense
from tests.cases import Problem

SOLVED = [partial(NGD, solver=solve_dense), partial(NGD, solver=ConjugateGradients()), NGD]
"""`NGD` with each of the solvers."""


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
    """Return whether two state dictionaries have the same values, to the bit, and the same keys in the same order."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def closure_of(problem: Problem, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    """Return the closure of a step, which returns the loss itself, as most do."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss

    return closure


def make_ngd(problem: Problem, **options: Any) -> NGD:
    """Return `NGD` with a learning rate and a damping of 0.1, if not said otherwise."""
    return NGD(problem.model, problem.criterion, **{"lr": 0.1, "damping": 0.1, **options})


def gradient_of(model: nn.Module) -> Tensor:
    """All gradients, one after the other."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
