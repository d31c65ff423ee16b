"""The experiment on analog time and delay: what it concludes from runs, and what a delay does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from spu_lab.experiments import delay
from spu_lab.experiments.delay import LARGER, NGD_EXACT, PANELS, STUDY, at_time, delayed, implicit, spring
from spu_lab.studies.panels import ARMS, panels_figure
from spu_lab.studies.sweeps import Arm, ArmResult
from spu_lab.studies.verdicts import Verdict
from spu_lab.tasks.task import Examples, Task
from spu_lab.training.loop import Evaluation, Run, StepMetrics
from spu_lab.training.settings import Settings

ALL = {arm.label: arm for panel in PANELS for arm in (panel.reference, *panel.arms)}


def trained(arm: Arm, loss: float) -> ArmResult:
    """Runs with three seeds that have a loss all the time, give or take what differs from arm to arm."""
    runs = []
    scale = 1e-3 * (1 + 0.1 * list(ALL).index(arm.label))
    for seed, off in enumerate((-scale, 0.0, scale)):
        steps = [StepMetrics(step, 1, loss + off, 0.5, 0.0, 0.0) for step in range(1, 41)]
        runs.append(Run(Settings(seed=seed), 10, 10, steps, [Evaluation(40, "test", loss + off, 0.5)]))
    return ArmResult(arm, tuple(runs))


def judged(**changed: float) -> Mapping[str, Verdict]:
    """Verdicts by the beginning of their claims, where all losses are 0.5 but those that are named."""
    named = {"keep_50": at_time(50.0, "keep"), "keep_10": at_time(10.0, "keep")}
    named |= {
        "drive_5": at_time(5.0, "drive"),
        "delay_5": delayed(5.0, "keep"),
        "forgetting": delayed(5.0, "drive"),
        "spring_5": spring(5.0),
        "larger": LARGER,
    }
    losses = {named[name].label: loss for name, loss in changed.items()}
    results = {label: trained(arm, losses.get(label, 0.5)) for label, arm in ALL.items()}
    verdicts = delay.judge(PANELS, results)
    assert len(verdicts) == 2 * 3 + 4 + 4
    return {verdict.claim: verdict for verdict in verdicts}


def holds(verdicts: Mapping[str, Verdict], *words: str) -> bool | None:
    (verdict,) = [verdict for claim, verdict in verdicts.items() if all(word in claim for word in words)]
    return verdict.holds


def test_close_is_within_a_tenth() -> None:
    assert holds(judged(keep_50=0.54), "At 50 τ", "(keep)")
    assert not holds(judged(keep_50=0.56), "At 50 τ", "(keep)")


def test_slower_is_a_higher_loss_in_the_first_epoch() -> None:
    assert holds(judged(drive_5=0.9), "are slower", "(drive)")
    assert not holds(judged(drive_5=0.9), "are slower", "(keep)")
    assert not holds(judged(drive_5=0.3), "are slower", "(drive)")


def test_a_delay_that_lowers_the_loss_helps_and_is_momentum_only_where_cells_remember() -> None:
    helped = judged(delay_5=0.4, spring_5=0.3)
    assert holds(helped, "A delay helps", "(keep)")
    assert not holds(helped, "A delay helps", "(drive)")
    assert holds(helped, "acts as momentum")
    assert holds(helped, "beat exact NGD")
    assert not holds(helped, "also beats exact NGD")
    assert holds(helped, "does more than as much time")
    assert not holds(judged(keep_10=0.3, delay_5=0.4), "does more than as much time")
    assert not holds(judged(delay_5=0.4, spring_5=0.6), "acts as momentum")
    assert not holds(judged(delay_5=0.4, spring_5=0.3, forgetting=0.45), "acts as momentum")
    assert holds(judged(delay_5=0.3, larger=0.4), "also beats exact NGD")
    assert not holds(judged(delay_5=0.4, larger=0.3), "also beats exact NGD")


def test_spring_has_the_memory_of_the_analog_time() -> None:
    assert [spring(t).value for t in (5.0, 50.0)] == [0.951, 0.607]  # e^{−0.05} and e^{−0.5}
    assert implicit(50.0).value == 0.667  # 1 / 1.5
    assert implicit(50.0).settings["damping"] == pytest.approx(0.03)
    assert STUDY.common["damping"] == 0.01


def test_nothing_holds_where_all_runs_diverge() -> None:
    lost = {label: ArmResult(arm, (None, None)) for label, arm in ALL.items()}
    assert not any(verdict.holds for verdict in delay.judge(PANELS, lost))


def test_a_line_does_not_join_two_families_of_arms() -> None:
    assert max(len(panel.arms) for panel in PANELS) <= len(ARMS)
    results = {label: trained(arm, 0.5) for label, arm in ALL.items()}
    right = panels_figure(PANELS[-1:], results, title="T", caption="C").axes[1]
    assert [list(line.get_xdata()) for line in right.lines[:4]] == [[0.607, 0.951], [0.667, 0.952], [0.5], [0.0]]


@pytest.fixture(scope="module")
def blobs() -> Task:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(96) % 3
    inputs = nn.functional.one_hot(targets, 3).float() + 0.3 * torch.randn(96, 3, generator=generator)
    parts = [Examples(inputs[k : k + 32], targets[k : k + 32]) for k in (0, 32, 64)]
    network = lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))  # noqa: E731
    return Task("blobs", 3, network, nn.CrossEntropyLoss(), lambda x: x, *parts)


def test_a_delay_matters_to_cells_that_keep_their_state_alone(blobs: Task, tmp_path: Path) -> None:
    small = replace(
        STUDY, common={**STUDY.common, "steps": 4, "batch_size": 8, "lr": 0.1}, seeds=(0,), panels=PANELS[2:]
    )
    results = small.run(tmp_path, blobs, Console(file=StringIO()), address="inproc:")

    def losses(arm: Arm) -> np.ndarray:
        (run,) = results[arm.label].finished
        return np.array([step.loss for step in run.steps])

    np.testing.assert_allclose(losses(delayed(1.0, "drive")), losses(at_time(5.0, "drive")), rtol=1e-6)
    assert abs(losses(delayed(1.0, "keep")) - losses(at_time(5.0, "keep"))).max() > 1e-5
    assert abs(losses(spring(5.0)) - losses(NGD_EXACT)).max() > 1e-5
    content = json.loads((tmp_path / "delay.json").read_text())
    assert content["status"] == "finished"
    table = (tmp_path / "delay.md").read_text()
    assert all(verdict["sentence"] in table for verdict in content["verdicts"])
    assert (tmp_path / "delay.png").stat().st_size > 10_000
