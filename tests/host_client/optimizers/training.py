"""The ordinary loop."""

from __future__ import annotations

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
