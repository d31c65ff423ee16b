"""A network of four kinds of parameters, two of them of one shape, on batches that depend on the number of the step."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from host_client.optimizers.base import NaturalGradient


class Network(nn.Sequential):
    """The same values each time, and a loss of its own."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
        self._loss = [nn.CrossEntropyLoss()]  # in a list, as it is no layer

    @property
    def criterion(self) -> nn.Module:
        """The loss."""
        return self._loss[0]


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a step."""
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(step)), torch.arange(6) % 2


def run(
    model: Network,
    optimizer: torch.optim.Optimizer,
    steps: range,
    scheduler: lr_scheduler.LRScheduler | None = None,
) -> list[Tensor]:
    """Train as the README does; the parameters after each step."""
    path = []
    for step in steps:
        inputs, targets = batch(step)
        loss = model.criterion(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)  # a plateau
        elif scheduler is not None:
            scheduler.step()
        path.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return path


def through_a_file(saved: dict[str, Any]) -> dict[str, Any]:
    """Return what a file holds, of plain values only."""
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


Make = Callable[[Network], NaturalGradient]
"""Makes an optimizer of a model."""
