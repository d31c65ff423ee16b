"""Two problems by TNGD through a free-running device and by Adam: a Poisson equation, and MNIST."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from host_client.blocking import Spu
from host_client.curvature import CurvatureFallback
from spu_lab.studies.classification import ClassifierRun, even_steps, train_classifier
from spu_lab.studies.classifier_methods import find_method, make_classifier_optimizer
from spu_lab.studies.descent import Descent, descend
from spu_lab.studies.pinn_methods import Growth, Stepper, by_adam, by_device
from spu_lab.tasks.pinn import GRID, POISSON_2D, Problem
from spu_lab.tasks.task import Task
from spu_lab.training.follow import progress

EQUATION: Final = POISSON_2D

DAMPING: Final = 1e-6

ANALOG_TIME: Final = Growth(1e5, 3e5, 50)
"""t in τ: 0.1 s and then 0.3 s at τ = 1 µs."""

RATE: Final = 0.01
"""Learning rate of Adam: the best of those that `tngd reproduce pinn` tries."""

TIMED: Final = 500
"""Steps of Adam from which the number that takes as long as TNGD is found."""

BATCH: Final = 512
"""Images in a batch."""

CLASSIFIERS: Final = {
    "TNGD": (find_method("TNGD, SPRING"), {"lr": 0.5, "damping": 0.1, "trust_region": 0.02, "spring": 0.8}),
    "Adam": (find_method("Adam"), {"lr": 0.01, "beta1": 0.9}),
}
"""For MNIST, each with a learning rate that falls to 0 on a straight line; `tngd reproduce mnist` searches them."""

EVALUATIONS: Final = 20
"""Evaluations of a classifier."""


@dataclass(frozen=True)
class Solved:
    """What a method came to on the equation.

    Attributes:
        descent: errors by steps and by wall time, which holds the time of the device.
        values: u at the points of a square grid, shape (GRID, GRID).
    """

    descent: Descent
    values: NDArray[np.float64]


def exact_values() -> NDArray[np.float64]:
    """Return the solution at the points of the grid, shape (GRID, GRID)."""
    return EQUATION.solution(EQUATION.evaluation_points()).reshape(GRID, GRID).numpy()


def solve_side_by_side(spu: Spu, *, steps: int, seed: int, console: Console) -> dict[str, Solved]:
    """Solve the equation through a device, and then by Adam in as much wall time, from the same start.

    Args:
        spu: a free-running device with a cell for each of 257 parameters.
        steps: of TNGD.
        seed: of network and points.
        console: where progress is shown.

    Returns:
        By method: ``"TNGD"``, ``"Adam"``.

    Raises:
        SpuError: when the device fails.
    """
    problem = Problem(EQUATION, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureFallback)  # the rows have no rule, and are computed all the same
        network = EQUATION.build(seed)
        with spu.session(ttl=30.0) as session:
            stepper = by_device(problem, network, session, damping=DAMPING, analog_time=ANALOG_TIME)
            solved = {"TNGD": _descend("TNGD", problem, network, stepper, steps, seed, console)}
    as_many = max(1, round(solved["TNGD"].descent.points[-1].wall_seconds / _seconds_of_adam(problem, seed)))
    network = EQUATION.build(seed)
    stepper = by_adam(problem, network, rate=RATE, steps=as_many)
    solved["Adam"] = _descend("Adam", problem, network, stepper, as_many, seed, console, every=10)
    return solved


def train_side_by_side(task: Task, spu: Spu, *, steps: int, seed: int, console: Console) -> dict[str, ClassifierRun]:
    """Train a classifier through a device, and by Adam: same start, same batches, as many steps.

    Args:
        task: what to learn.
        spu: a free-running device.
        steps: of each method.
        seed: of network, batches and drawn labels.
        console: where progress is shown.

    Returns:
        By method: ``"TNGD"``, ``"Adam"``.

    Raises:
        SpuError: when the device fails.
    """
    runs = {}
    with spu.session(ttl=30.0) as session:
        for label, (method, values) in CLASSIFIERS.items():
            torch.manual_seed(seed)
            model = task.build(seed)
            given = session if method.uses_device else None
            optimizer = make_classifier_optimizer(
                method, values, model, task.criterion, session=given, decay_steps=steps
            )
            with progress(console) as bar:
                line = bar.add_task(f"{task.name}, {label}", total=steps, status="")
                optimizer.register_step_post_hook(lambda *_, bar=bar, line=line: bar.update(line, advance=1))
                at = even_steps(steps, EVALUATIONS)
                runs[label] = train_classifier(
                    task, model, optimizer, batch_size=BATCH, seed=seed, steps=steps, evaluate_at=at, split="test"
                )
            console.print(
                f"{task.name}, {label}: test accuracy {runs[label].accuracy:.2%} after {steps} steps, "
                f"{sum(runs[label].seconds):.0f} s",
                highlight=False,
            )
    return runs


def _seconds_of_adam(problem: Problem, seed: int) -> float:
    """Return how long a step of Adam takes, without the first one, which takes longer."""
    stepper = by_adam(problem, EQUATION.build(seed), rate=RATE, steps=TIMED + 1)
    stepper()
    began = time.perf_counter()
    for _ in range(TIMED):
        stepper()
    return (time.perf_counter() - began) / TIMED


def _descend(
    method: str,
    problem: Problem,
    network: nn.Sequential,
    stepper: Stepper,
    steps: int,
    seed: int,
    console: Console,
    *,
    every: int = 1,
) -> Solved:
    """Take all steps under a progress line."""
    with progress(console) as bar:
        line = bar.add_task(f"{EQUATION.title}, {method}", total=steps, status="")
        points = descend(problem, network, _counted(stepper, lambda: bar.update(line, advance=1)), steps, every=every)
    descent = Descent(method, EQUATION.name, seed, points)
    console.print(
        f"{EQUATION.title}, {method}: relative L2 error {descent.best.error:.1e} after {descent.best.step:,} of "
        f"{steps:,} steps; {points[-1].wall_seconds:.0f} s in all",
        highlight=False,
    )
    with torch.no_grad():
        values = network(EQUATION.evaluation_points()).reshape(GRID, GRID).numpy()
    return Solved(descent, values)


def _counted(stepper: Stepper, count: Callable[[], None]) -> Stepper:
    def step() -> float:
        loss = stepper()
        count()
        return loss

    return step
