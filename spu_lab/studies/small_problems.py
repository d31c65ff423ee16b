"""Small problems of three kinds on which settings of `TNGD` are compared: digits, a regression and an equation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

import torch
from torch import Tensor, nn

from host_client import LineSearch
from host_client.curvature import Criteria
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.pinn import POISSON_2D, Problem


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


def _regression(seed: int) -> Small:
    """Return a function of two inputs from noisy measurements, 128 of 1,024 a batch; the data of docs/tutorial.md."""
    x = 2.0 * torch.rand(1024 + 512, 2) - 1.0
    y = torch.sin(6.0 * x[:, :1]) * torch.cos(4.0 * x[:, 1:]) + 0.02 * torch.randn(len(x), 1)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    criterion = nn.MSELoss()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for places in torch.randperm(1024, generator=generator).split(128):
                yield x[places], y[places]

    @torch.no_grad()
    def score() -> float:
        return float(criterion(model(x[1024:]), y[1024:]))

    return Small(model, criterion, batches(), lambda batch: criterion(model(batch[0]), batch[1]), score)


def _poisson(seed: int) -> Small:
    """Return the equation of `pinn` in two dimensions, all points in each step."""
    problem, network = Problem(POISSON_2D, seed), POISSON_2D.build(seed)
    return Small(
        network,
        problem.criterion,
        repeat(None),
        lambda _: problem.loss(network),
        lambda: problem.error(network),
    )


KINDS: Final = {
    "digits": Kind("MNIST, 784-32-10", "test loss", _digits, 157, 0.1, lambda: {"lr": 0.1}),
    "regression": Kind("Regression", "validation loss", _regression, 80, 1e-4, lambda: {"lr": 0.1}),
    "poisson": Kind(
        "Poisson 2D",
        "relative L2 error",
        _poisson,
        100,
        1e-5,
        lambda: {"lr": 1.0, "line_search": LineSearch()},
    ),
}
"""By name. λ and η of the first two are the best of the grids in docs/choosing.md. λ of the third is one with which
runs of different seeds end alike: with a tenth of it their errors differ up to tenfold, whatever t is."""


def build(kind: Kind, seed: int) -> Small:
    """Return a fresh problem; the same seed gives the same one, and torch's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.build(seed)
