"""A small network that learns through a device smaller than it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from host_client import TNGD
from host_client.curvature import Capture
from host_client.curvature.base import BaseCapture
from host_client.curvature.kronecker.capture import KroneckerCapture
from host_client.embeddings import Embedding, solve_exactly

SAMPLES, FEATURES, CLASSES = 5, 6, 3
ROWS = SAMPLES * (CLASSES - 1)
"""Rows of the exact factor: one column fewer than classes."""

CELLS = {"sample": ROWS, "block": 7 * 4, "kronecker": 7}
"""Cells needed by embedding: parameters of the larger layer, and inputs of the wider one with a one for the bias."""


class Training:
    """Linear layers with a bias, batches that depend on the number of the step alone, float64."""

    def __init__(self, session: Any = None, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()
        self.criterion = nn.CrossEntropyLoss()
        if session is not None:
            settings = {"lr": 0.1, "damping": 0.1, "analog_time": 400.0, **options}
            self.optimizer = TNGD(self.model, self.criterion, session, **settings)

    def loss(self, number: int) -> Tensor:
        """The loss of a step's batch."""
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
        targets = torch.arange(SAMPLES) % CLASSES
        inputs[torch.arange(SAMPLES), targets] += 2.0
        loss: Tensor = self.criterion(self.model(inputs), targets)
        return loss

    def steps(self, first: int, last: int) -> list[float]:
        """Train; the losses."""
        losses = []
        for number in range(first, last):
            loss = self.loss(number)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    @property
    def parameters(self) -> Tensor:
        """All parameters, one after the other."""
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def digital(embedding: Embedding, steps: int, *, every: int = 1) -> Tensor:
    """The parameters after the same steps along exact solutions under an embedding."""
    one = Training()
    capture: BaseCapture
    if embedding.name == "kronecker":
        capture = KroneckerCapture(one.model, one.criterion)
    else:
        capture = Capture(one.model, one.criterion)
    for number in range(steps):
        capture.paused = number % every > 0
        one.loss(number).backward()
        if not capture.paused:
            operator = capture.operator_of_gradients()
        capture.forget_gradients()
        drive = torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None])
        direction = solve_exactly(embedding, operator, drive, 0.1)
        with torch.no_grad():
            for p, part in zip(
                one.model.parameters(), direction.split([p.numel() for p in one.model.parameters()]), strict=True
            ):
                p -= 0.1 * part.view_as(p)
                p.grad = None
    capture.close()
    return one.parameters
