"""Small problems on which settings of `TNGD` are compared: classification, a regression and equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, Final

import torch
from torch import Tensor, nn

from host_client import LineSearch
from host_client.curvature import Criteria
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.pinn import HEAT, POISSON_2D, Equation, Problem


@dataclass(frozen=True)
class Small:
    """A network with its loss, fresh for a seed.

    Attributes:
        model: what is trained.
        criterion: of the curvature.
        batches: without end.
        loss: of a batch.
        score: what is compared at the end; less is better.
    """

    model: nn.Module
    criterion: Criteria
    batches: Iterator[Any]
    loss: Callable[[Any], Tensor]
    score: Callable[[], float]


@dataclass(frozen=True)
class Kind:
    """A problem.

    Attributes:
        title: for people.
        score: name of what is compared.
        build: makes it for a seed.
        steps: of a training run.
        damping: λ.
        options: further ones of the optimizer: η, and how a step is chosen.
    """

    title: str
    score: str
    build: Callable[[int], Small]
    steps: int
    damping: float
    options: Callable[[], Mapping[str, Any]]


def _digits(seed: int) -> Small:
    """Return MNIST for a network 784-32-10, 64 images a batch."""
    task = mnist()
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10))
    return Small(
        model,
        task.criterion,
        task.batches(64, seed),
        lambda batch: task.criterion(model(batch[0]), batch[1]),
        lambda: task.evaluate(model, task.test)[0],
    )


def _spirals(seed: int) -> Small:
    """Return three interleaved spirals, 1,200 points of which 64 a batch, and 600 points for the validation."""
    classes = torch.arange(1800) % 3
    radius = torch.rand(1800)
    angle = 2.0 * math.pi * (classes / 3.0 + radius) + 0.2 * torch.randn(1800)
    x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    return _in_batches(model, nn.CrossEntropyLoss(), x, classes, 1200, 64, seed)


def _regression(seed: int) -> Small:
    """Return a function of two inputs from noisy measurements, 128 of 1,024 a batch; the data of docs/tutorial.md."""
    x = 2.0 * torch.rand(1024 + 512, 2) - 1.0
    y = torch.sin(6.0 * x[:, :1]) * torch.cos(4.0 * x[:, 1:]) + 0.02 * torch.randn(len(x), 1)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    return _in_batches(model, nn.MSELoss(), x, y, 1024, 128, seed)


def _in_batches(
    model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor, training: int, size: int, seed: int
) -> Small:
    """Return training in shuffled batches of the first points; the score is the loss of the others."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for places in torch.randperm(training, generator=generator).split(size):
                yield x[places], y[places]

    @torch.no_grad()
    def score() -> float:
        return float(criterion(model(x[training:]), y[training:]))

    return Small(model, criterion, batches(), lambda batch: criterion(model(batch[0]), batch[1]), score)


def _equation(equation: Equation, seed: int) -> Small:
    """Return an equation of `pinn`, all points in each step."""
    problem, network = Problem(equation, seed), equation.build(seed)
    return Small(
        network,
        problem.criterion,
        repeat(None),
        lambda _: problem.loss(network),
        lambda: problem.error(network),
    )


def _line_search() -> dict[str, Any]:
    return {"lr": 1.0, "line_search": LineSearch()}


KINDS: Final = {
    "digits": Kind("MNIST, 784-32-10", "test loss", _digits, 157, 0.1, lambda: {"lr": 0.1}),
    "spirals": Kind("Three spirals", "validation loss", _spirals, 190, 0.01, lambda: {"lr": 0.1}),
    "regression": Kind("Regression", "validation loss", _regression, 80, 1e-4, lambda: {"lr": 0.1}),
    "poisson": Kind("Poisson 2D", "relative L2 error", partial(_equation, POISSON_2D), 100, 1e-5, _line_search),
    "heat": Kind("Heat 1+1D", "relative L2 error", partial(_equation, HEAT), 100, 1e-6, _line_search),
}
"""By name. λ and η of digits and regression are the best of the grids in docs/choosing.md, λ of Poisson is that of the
16-bit device of `pinn`, and those of the others are in the middle of the grids of `recipe`."""


def build(kind: Kind, seed: int) -> Small:
    """Return a fresh problem; the same seed gives the same one, and torch's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.build(seed)
