"""Time of a training step without an emulator: what the host does, measured, and the device by its timing model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

from torch import Tensor

from host_client.blocking import Session
from host_client.optimizers import NGD
from host_client.solvers import Info, Solver
from spu_lab.studies.classification import ClassifierRun, train_classifier
from spu_lab.studies.classifier_methods import Method, make_classifier_optimizer
from spu_lab.studies.devices import modelled_seconds, open_device
from spu_lab.tasks.task import Task
from spu_link.operators import Operator

BOARD: Final = {"preset": "paper-16-bit"}
"""The paper's device: 16 bits, 50 Gb/s, τ = 1 µs; and thermal noise of 300 K, which is ours."""

FACTORS: Final = {**BOARD, "timing.arrays": "factors"}
"""The same with resistors for the elements of structured factors, in place of J, H and Jᵀ element by element."""

EXPANSIONS: Final = 3
"""Steps in which J is multiplied out, to measure how long that takes."""


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step.

    Attributes:
        host: what the host does, see `average_step`: gradient, curvature, update, and the solve of a digital method.
        device: modelled, with the paper's arrays; 0 without a device.
        device_factors: modelled, with arrays of factors.
        expansion: of the host, to multiply out the factors of J, whose elements the paper's arrays need; 0 without a
            device.
    """

    host: float
    device: float
    device_factors: float
    expansion: float

    @property
    def seconds(self) -> float:
        """Host and device, with the paper's arrays; one after the other."""
        return self.host + self.expansion + self.device

    @property
    def seconds_factors(self) -> float:
        """Host and device, with arrays of factors."""
        return self.host + self.device_factors


def measure_step_cost(
    load: Callable[[], Task], method: Method, values: Mapping[str, float], batch_size: int, steps: int
) -> StepCost:
    """Measure a method's steps at the beginning of a run, on a device in this process, of which the model is asked.

    Args:
        load: returns data, network and loss.
        method: which.
        values: its hyperparameters that were searched.
        batch_size: examples of a step.
        steps: steps of the host.
    """
    task = load()
    expansions: list[float] = []

    def run(
        count: int,
        session: Session | None = None,
        device_seconds: Callable[[], float] = float,
        solver: Solver | None = None,
    ) -> ClassifierRun:
        model = task.build(0)
        optimizer = make_classifier_optimizer(method, values, model, task.criterion, session=session)
        if solver is not None:
            assert isinstance(optimizer, NGD)
            optimizer.solver = solver
        return train_classifier(
            task,
            model,
            optimizer,
            batch_size=batch_size,
            seed=0,
            steps=count,
            evaluate_at=(),
            split="validation",
            device_seconds=device_seconds,
        )

    def expand(operator: Operator, drive: Tensor, damping: float) -> tuple[Tensor, Info]:
        began = time.perf_counter()
        operator.dense()
        expansions.append(time.perf_counter() - began)
        return drive, {}

    def device_step(board: Mapping[str, str]) -> float:
        with (
            open_device("inproc:", driver="analog", driver_option=board) as device,
            device.session(ttl=60.0) as session,
        ):
            return run(2 * period, session, partial(modelled_seconds, device)).device_seconds / (2 * period)

    period = int(method.fixed.get("curvature_every", 1))
    host = average_step(run(max(steps, 2 * period + 1)).seconds, period)
    if not method.uses_device:
        return StepCost(host, 0.0, 0.0, 0.0)
    run(EXPANSIONS, solver=expand)
    return StepCost(host, device_step(BOARD), device_step(FACTORS), median(expansions) / period)


def average_step(seconds: Sequence[float], period: int) -> float:
    """Return the average time of a step, from medians of the steps with a new curvature and of the others.

    Args:
        seconds: of each step; the first one, which also checks the curvature, is left out.
        period: steps from one curvature to the next; more than that are needed.
    """
    new = median(seconds[period::period])
    others = [value for number, value in enumerate(seconds) if number % period]
    return new if period == 1 else (new + (period - 1) * median(others)) / period
