"""One run of a method on a loss without noise: how its error falls, by steps and by time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from spu_lab.tasks.pinn import Problem


@dataclass(frozen=True)
class Point:
    """State of a run after a step.

    Attributes:
        step: number of the step, from 1.
        error: relative L2 error after it.
        loss: before it.
        wall_seconds: since the run began, without the evaluations of the error.
        device_seconds: modelled time of the device since then.
    """

    step: int
    error: float
    loss: float
    wall_seconds: float
    device_seconds: float

    @property
    def seconds(self) -> float:
        """Wall time plus modelled time of the device, which a stepped clock does not wait for."""
        return self.wall_seconds + self.device_seconds


@dataclass(frozen=True)
class Descent:
    """A run.

    Attributes:
        method: how it was trained.
        problem: name of the equation.
        seed: of network and points.
        points: in order of the steps, at least one.
    """

    method: str
    problem: str
    seed: int
    points: Sequence[Point]

    @property
    def best(self) -> Point:
        """The point of the lowest error."""
        return min(self.points, key=lambda point: point.error)

    def first_below(self, error: float) -> Point | None:
        """Return the first point with an error of at most that; None where there is none."""
        return next((point for point in self.points if point.error <= error), None)

    def until(self, step: int) -> Descent:
        """Return the run up to a step."""
        return replace(self, points=[point for point in self.points if point.step <= step])


def descend(
    problem: Problem,
    network: nn.Sequential,
    take_step: Callable[[], float],
    steps: int,
    *,
    every: int = 1,
    device_seconds: Callable[[], float] = lambda: 0.0,
) -> list[Point]:
    """Take steps, and evaluate the error after every so many of them.

    Args:
        problem: what to solve.
        network: what is trained.
        take_step: takes one step; returns the loss before it.
        steps: how many.
        every: so many steps, the error is evaluated; after the first and the last one too.
        device_seconds: modelled time of the device so far.
    """
    points, wall, modelled = [], 0.0, device_seconds()
    for step in range(1, steps + 1):
        began = time.perf_counter()
        loss = take_step()
        wall += time.perf_counter() - began
        if step % every == 0 or step in (1, steps):
            points.append(Point(step, problem.error(network), loss, wall, device_seconds() - modelled))
    return points
