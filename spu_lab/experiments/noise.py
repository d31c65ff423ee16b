"""Noise: MNIST through devices of different κ₀, read at t = τ, the paper's Fig. 7, and whether κ₀ < 0.01 matters."""

from __future__ import annotations

from collections.abc import Sequence

from spu_lab.studies.study import Results, Study, describe_differences, find_differences
from spu_lab.studies.sweeps import Arm, Panel
from spu_lab.studies.verdicts import Verdict

CLAIM = 0.01
"""Below this, says the paper, noise makes essentially no difference at t = τ."""

NOISES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)


def panel(varied: str, start: str, lr: float) -> Panel:
    """All κ₀ with one start of the cells, at a learning rate that goes with it."""
    arms = [
        Arm(f"κ₀ = {noise:g}, {start}", noise, {"noise": noise, "start": start, "lr": lr}) for noise in (0.0, *NOISES)
    ]
    return Panel(varied, arms[0], arms[1:])


def judge(panels: Sequence[Panel], results: Results) -> list[Verdict]:
    """Return the verdict on the paper's claim, for each start."""
    return [
        Verdict(
            f"κ₀ < {CLAIM:g} makes no difference, for {panel.varied}",
            describe_differences(panel, results, is_claimed),
            not find_differences(panel, results, is_claimed),
        ).of_paper("Fig. 7")
        for panel in panels
    ]


def is_claimed(noise: float) -> bool:
    """Return whether the claim is about this κ₀."""
    return noise < CLAIM


STUDY = Study(
    name="noise",
    title="Noise of the device: MNIST with TNGD, read at t = τ",
    caption="One epoch. λ = 0.01, t_d = 0, b = 64. Keep: every solve starts from the cells' state, as in the paper, "
    "η = 0.01. Drive: from the gradient; such a step is nearly one of SGD, and η = 0.1.",
    panels=[
        panel("noise κ₀, cells keep their state", "keep", 0.01),
        panel("noise κ₀, start from the drive", "drive", 0.1),
    ],
    common={"analog_time": 1.0, "epochs": 1},
    seeds=(0, 1, 2, 3, 4),
    judge=judge,
)

run = STUDY.reproduce
