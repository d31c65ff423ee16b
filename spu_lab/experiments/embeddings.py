"""Embeddings: MNIST through devices with fewer cells than parameters, each against its digital equivalent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from host_client.embeddings import Block, Kronecker, solve_exactly
from host_client.optimizers import KFAC, NGD
from host_client.optimizers.named import make_optimizer
from spu_lab.studies.convergence import convergence_figure
from spu_lab.studies.study import Results, Study
from spu_lab.studies.sweeps import Arm, Panel
from spu_lab.studies.verdicts import Verdict
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.task import Task
from spu_link.operators import Operator

TIMES = (20.0, 200.0, 2000.0)
"""Analog times in τ. At the longest, e^{-λt} is at most 2e-9 of the way to the solution."""

ALIKE = 0.01
"""Largest difference of two test losses that count as the same, relative to the second."""


def network() -> nn.Sequential:
    """Smaller than the reference network, so that the solves of K-FAC, one by one, stay within minutes; N = 2,698."""
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 10),
    )


def small_mnist() -> Task:
    """MNIST for `network`."""
    return replace(mnist(), network=network)


class ExactKronecker(KFAC):
    """K-FAC with the damping shared between the factors."""

    def _directions(self, operator: Operator | None, drive: Tensor) -> Iterable[Tensor]:
        assert self._operator is not None
        return [solve_exactly(Kronecker(), self._operator, drive, self.hyperparameters["damping"]).to(drive.dtype)]


def make_block(name: str, *arguments: Any, session: None = None, **options: Any) -> NGD:
    """Make, in the place of `make_optimizer`, what solves the blocks on the diagonal of F digitally."""
    return NGD(*arguments, solver=lambda *system: (solve_exactly(Block(), *system), None), **options)


def make_kronecker(name: str, *arguments: Any, session: None = None, **options: Any) -> ExactKronecker:
    """Make `ExactKronecker` likewise."""
    return ExactKronecker(*arguments, **options)


def panel(
    name: str,
    cells: int,
    reference: str,
    device: Mapping[str, Any],
    settings: Mapping[str, Any],
    make: Callable[..., torch.optim.Optimizer] = make_optimizer,
) -> Panel:
    """A device of so many cells, read at different times, against its digital equivalent."""
    digital = Arm(reference, settings={**settings, "optimizer": "ngd-woodbury"}, device=None, make=make)
    arms = [
        Arm(f"{name}, {cells:,} cells, t = {t:g} τ", t, {**settings, "analog_time": t}, {"cells": cells, **device})
        for t in TIMES
    ]
    return Panel(f"{name}, {cells:,} cells", digital, arms)


def judge(panels: Sequence[Panel], results: Results) -> list[Verdict]:
    """Return whether the devices do what is computed digitally, at the longest time."""
    verdicts = []
    for panel in panels:
        longest, digital = results[panel.arms[-1].label], results[panel.reference.label]
        paired, loss = longest.against(digital), fmean(digital.finals("loss"))
        largest = max(map(abs, paired.differences)) if paired is not None else math.inf
        verdicts.append(
            Verdict(
                f"{longest.arm.label}: the test loss is that of {digital.arm.label} within {ALIKE:.0%}",
                f"With the same seed it differs by at most {largest:.1g}, of {loss:.3g}.",
                largest <= ALIKE * loss,
            )
        )
    return verdicts


EXACT = {"lr": 0.03, "damping": 0.01}
DRAWN = {"lr": 0.01, "damping": 0.1, "curvature": "mc"}
EIGHT = {"lr": 0.1, "damping": 1.0, "curvature": "mc", "batch_size": 8}
SAMPLE = {"embedding": "sample"}
BOARD = {**SAMPLE, "driver_option": {"preset": "eight-cell"}}

STUDY = Study(
    name="embeddings",
    title="Devices smaller than the problem: MNIST with a network of 2,698 parameters",
    caption="One epoch. Exact curvature (direct, 576 cells, block, Kronecker): b = 64, η = 0.03, λ = 0.01. One label "
    "drawn a sample: 64 cells, b = 64, η = 0.01, λ = 0.1; 8 cells, b = 8, η = 0.1, λ = 1.",
    panels=[
        panel("direct", 2_698, "NGD", {}, EXACT),
        panel("sample space", 576, "NGD", SAMPLE, EXACT),
        panel("sample space", 64, "NGD, labels drawn", SAMPLE, DRAWN),
        panel("sample space", 8, "NGD, labels drawn, b = 8", SAMPLE, EIGHT),
        panel("preset eight-cell, sample space", 8, "NGD, labels drawn, b = 8", BOARD, EIGHT),
        panel("block", 1_450, "NGD by layer", {"embedding": "block"}, EXACT, make_block),
        panel("Kronecker", 145, "K-FAC, factored damping", {"embedding": "kronecker"}, EXACT, make_kronecker),
    ],
    common={"epochs": 1},
    seeds=(0, 1, 2),
    judge=judge,
    task=small_mnist,
    draw=convergence_figure,
)

run = STUDY.reproduce
