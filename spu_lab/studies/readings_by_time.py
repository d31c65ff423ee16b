"""The error of a reading against the analog time, on the curvature of a network in training, with its bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from host_client import TNGD, Capture, settling_time
from host_client.blocking import Session
from host_client.solvers import solve_direct
from host_client.solvers.settling import LOST
from spu_lab.studies.small_problems import Kind, Small, build
from spu_link.operators import Operator


@dataclass(frozen=True)
class Curve:
    """Errors of readings of one program, ‖x(t) − x*‖/‖x*‖ in the norm of F + λI.

    Attributes:
        times: t, in τ.
        errors: measured at these.
        spectral: e^{−λt} ‖x(0) − x*‖/‖x*‖ at these, the bound for eigenvalues of F that may be 0.
        bounds: errors that `settling_time` is asked for.
        bound_times: times that it returns for them.
        automatic: the time of ``analog_time="auto"``.
        needed: the shortest time with that error.
        by_damping: the time at which `spectral` is that error.
    """

    times: Sequence[float]
    errors: Sequence[float]
    spectral: Sequence[float]
    bounds: Sequence[float]
    bound_times: Sequence[float]
    automatic: float
    needed: float
    by_damping: float

    @property
    def bounded_errors(self) -> Sequence[float]:
        """The bound at `times`: the smallest of `bounds` whose time has passed; infinite where none has."""
        reached = [[b for b, at in zip(self.bounds, self.bound_times, strict=True) if at <= t] for t in self.times]
        return [min(those, default=math.inf) for those in reached]


def measure_curve(
    kind: Kind, seed: int, session: Session, *, steps: int, times: Sequence[float], bounds: Sequence[float]
) -> Curve:
    """Train for some steps, then read the device after each of some times.

    Args:
        kind: what is trained.
        seed: of it.
        session: the device, without noise.
        steps: of training, with settled readings.
        times: t of the readings, in 1/λ.
        bounds: errors to ask `settling_time` for.
    """
    problem = build(kind, seed)
    train(kind, problem, session, steps, 5.0)
    operator, drive = _curvature(problem)
    damping = kind.damping
    exact, _ = solve_direct(operator, drive, damping)
    whole = _norm(operator, damping, exact)

    def error(time: float) -> float:
        reading = session.solve(operator, drive, damping=damping, analog_time=time, start="drive")
        return _norm(operator, damping, reading.value - exact) / whole

    first = _norm(operator, damping, drive - exact) / whole
    spans = [time / damping for time in times]
    return Curve(
        spans,
        [error(time) for time in spans],
        [first * math.exp(-damping * time) for time in spans],
        bounds,
        [settling_time(operator, drive, damping, lost=bound**2) for bound in bounds],
        settling_time(operator, drive, damping),
        _shortest(error, LOST**0.5, 10.0 / damping),
        max(0.0, math.log(first / LOST**0.5)) / damping,
    )


def train(kind: Kind, problem: Small, session: Session, steps: int, time: float | None) -> float:
    """Train; return the device time a step, in 1/λ.

    Args:
        kind: what is trained.
        problem: its instance.
        session: the device.
        steps: how many.
        time: t of each step, in 1/λ; None: ``"auto"``.
    """
    began = float(session.device_time)
    optimizer = TNGD(
        problem.model,
        problem.criterion,
        session,
        damping=kind.damping,
        start="drive",
        analog_time="auto" if time is None else time / kind.damping,
        **kind.options(),
    )
    for _ in range(steps):
        batch = next(problem.batches)

        def closure(batch: Any = batch) -> float:
            optimizer.zero_grad()
            loss = problem.loss(batch)
            loss.backward()
            return loss.item()

        optimizer.step(closure)
    optimizer.close()
    return kind.damping * (float(session.device_time) - began) / max(steps, 1)


def _curvature(problem: Small) -> tuple[Operator, Tensor]:
    """Return F and the gradient of the next batch."""
    capture = Capture(problem.model, problem.criterion)
    problem.model.zero_grad()
    problem.loss(next(problem.batches)).backward()
    operator = capture.operator_of_gradients()
    capture.close()
    gradients = [parameter.grad for parameter in problem.model.parameters() if parameter.grad is not None]
    return operator, torch.cat([gradient.flatten() for gradient in gradients]).double()


def _norm(operator: Operator, damping: float, x: Tensor) -> float:
    """Return the norm √(xᵀ(F + λI)x)."""
    return math.sqrt(float(x @ (operator.curvature(x) + damping * x)))


def _shortest(error: Callable[[float], float], bound: float, longest: float) -> float:
    """Return the shortest time with an error of at most `bound`, to 2 %, by bisection of its logarithm."""
    low, high = longest * 1e-7, longest
    while high > 1.02 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if error(middle) <= bound else (middle, high)
    return high
