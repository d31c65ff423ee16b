"""The recipe of docs/choosing.md for η, λ and t, as it is written there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn

from host_client import TNGD, Capture
from host_client.blocking import Session
from spu_lab.studies.small_problems import Kind, Small, build

SETTLED: Final = 5.0
"""t of a step, in 1/λ."""

CLASSIFIER: Final = {"lr": 1.0, "trust_region": 0.01}
"""Options for a classifier, with λ = μ_max/100."""

WITHOUT_NOISE: Final = 1e-7
"""λ in μ_max for a loss on all data."""

LOWEST_RATE, HIGHEST_RATE, SWEEP_STEPS = 0.01, 3.0, 40


def apply_recipe(kind: Kind, seed: int, session: Session) -> Kind:
    """Return a problem with the λ and the options that the recipe chooses for it.

    Args:
        kind: the problem; whether its options have a line search says whether its loss has no noise.
        seed: of it.
        session: the device that the sweeps are run on.
    """
    problem = build(kind, seed)
    largest = largest_eigenvalue(problem)
    if "line_search" in kind.options():
        return replace(kind, damping=WITHOUT_NOISE * largest)
    if isinstance(problem.criterion, nn.CrossEntropyLoss):
        return replace(kind, damping=0.01 * largest, options=lambda: CLASSIFIER)
    best = math.inf
    chosen = kind
    for power in range(1, 8):
        damping = largest * 10.0**-power
        lowest, rate = _sweep(build(kind, seed), session, damping)
        if lowest < best:
            best, chosen = lowest, _with_rate(kind, damping, 0.1 * rate)
        elif lowest > 1.1 * best:
            break
    return chosen


def largest_eigenvalue(problem: Small) -> float:
    """Return μ_max, the largest eigenvalue of the curvature F of one batch."""
    capture = Capture(problem.model, problem.criterion)
    problem.loss(next(problem.batches)).backward()
    gram = capture.operator_of_gradients().gram()
    capture.close()
    problem.model.zero_grad()
    return float(torch.linalg.eigvalsh(gram.double())[-1])


def _with_rate(kind: Kind, damping: float, rate: float) -> Kind:
    options: Mapping[str, Any] = {"lr": rate}
    return replace(kind, damping=damping, options=lambda: options)


def _sweep(problem: Small, session: Session, damping: float) -> tuple[float, float]:
    """Train with a growing η until the loss diverges; return the lowest smoothed loss, and the η there."""
    time = SETTLED / damping
    optimizer = TNGD(
        problem.model, problem.criterion, session, lr=0.0, damping=damping, analog_time=time, start="drive"
    )
    lowest, at, average = math.inf, LOWEST_RATE, 0.0
    for step in range(SWEEP_STEPS):
        rate = LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** (step / (SWEEP_STEPS - 1))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = problem.loss(next(problem.batches))
        if not loss.item() < 4.0 * lowest:
            break
        average = 0.8 * average + 0.2 * loss.item()
        smooth = average / (1.0 - 0.8 ** (step + 1))
        if smooth < lowest:
            lowest, at = smooth, rate
        loss.backward()
        optimizer.step()
    optimizer.close()
    return lowest, at
