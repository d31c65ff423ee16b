"""Report of the experiment on question answering: methods, their results as a table, a verdict and a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from host_client.optimizers import make_optimizer
from spu_lab.studies.paired import compare
from spu_lab.studies.panels import ARMS, LEGEND, count_diverged
from spu_lab.studies.sweeps import Arm, ArmResult
from spu_lab.studies.verdicts import Verdict
from spu_lab.training.report import INK, MUTED, averaging_window, dress, median_and_range, moving_average

BOTH = "paper's, best"
"""How a learning rate has been chosen that is the paper's and has the lowest validation loss."""

COLUMNS = ("method", "chosen", "training loss", "test loss", "exact match", "F1", "time a step")
"""The training loss is the mean of the last epoch; mean ± standard deviation over seeds."""


@dataclass(frozen=True)
class Method:
    """A way to train, but for its learning rate.

    Attributes:
        name: for people.
        lr: the paper's learning rate.
        grid: learning rates that are tried; one of them is the paper's.
        settings: of the run.
        make: makes the optimizer.
    """

    name: str
    lr: float
    grid: tuple[float, ...]
    settings: Mapping[str, Any]
    make: Callable[..., torch.optim.Optimizer] = make_optimizer

    def arm(self, lr: float, **changed: Any) -> Arm:
        """Return the arm with this learning rate and changed settings."""
        settings = {**self.settings, "lr": lr, **changed}
        time = f", t = {settings['analog_time']:g} τ" if "analog_time" in settings else ""
        device = None if settings["optimizer"] == "adam" else {"driver": "emulator"}
        return Arm(f"{self.name}, η = {lr:g}{time}", lr, settings, device, self.make)


@dataclass(frozen=True)
class Result:
    """Runs of a method at one learning rate and time, all seeds.

    Attributes:
        method: its name.
        chosen: how the learning rate was chosen: ``"paper's"``, ``"best"`` or `BOTH`.
        runs: by seed.
    """

    method: str
    chosen: str
    runs: ArmResult

    @property
    def time(self) -> float | None:
        """Analog time t, in τ; None without a device."""
        return self.runs.arm.settings.get("analog_time")

    def training_losses(self, last: int) -> list[float | None]:
        """Return by seed the mean loss of the last batches; None where the run diverged."""
        return [run.training_loss(last) if run is not None else None for run in self.runs.runs]

    def scores(self, name: str) -> list[float]:
        """Return a score on the test set at the end, of the runs that did not diverge."""
        return [run.final("test").scores[name] for run in self.runs.finished]


def row(result: Result, epoch: int) -> list[str]:
    """Return the row of a result in the table of `COLUMNS`.

    Args:
        result: of one arm.
        epoch: batches in an epoch.
    """
    finished, lost = result.runs.finished, count_diverged(result.runs)
    return [
        result.runs.arm.label + (f" ({lost})" if lost else ""),
        result.chosen,
        _spread([loss for loss in result.training_losses(epoch) if loss is not None]),
        _spread(result.runs.finals("loss")),
        _spread(result.scores("exact_match"), 100.0, "%"),
        _spread(result.scores("f1"), 100.0, "%"),
        f"{1e3 * fmean(run.seconds_per_iteration for run in finished):.0f} ms" if finished else "–",
    ]


def _spread(values: Sequence[float], factor: float = 1.0, unit: str = "") -> str:
    if not values:
        return "–"
    scaled = [factor * value for value in values]
    deviation = f" ± {stdev(scaled):.2g}" if len(scaled) > 1 else ""
    return f"{fmean(scaled):.4g}{unit}{deviation}"


def judge(results: Sequence[Result], epoch: int) -> list[Verdict]:
    """Return the verdicts on the paper's claims, and about the held-out scores that it does not give.

    Args:
        results: all, those of the paper's comparison among them.
        epoch: batches in an epoch; the training loss is the mean of the last one.
    """
    longest = max(result.time for result in results if result.time is not None)
    compared = [result for result in results if result.time in (None, longest)]
    papers = {result.method: result for result in compared if "paper's" in result.chosen}
    best = {result.method: result for result in compared if "best" in result.chosen}
    thermodynamic = [r for r in results if r.method == "TNGD-Adam" and "paper's" in r.chosen]
    by_time = sorted(thermodynamic, key=lambda result: result.time or 0.0)
    highest = max(best.values(), key=lambda result: fmean(result.scores("f1") or [0.0]))
    f1 = ", ".join(f"{name} {_spread(result.scores('f1'), 100.0, '%')}" for name, result in best.items())
    first, second = papers["TNGD-Adam"], papers["Adam"]
    return [
        _judge("TNGD-Adam has a lower training loss than Adam", first, second, epoch).of_paper("Fig. 5a"),
        _judge("Adam has a lower training loss than TNGD", second, papers["TNGD"], epoch).of_paper("Fig. 5a"),
        _judge(
            "TNGD-Adam has a lower training loss than Adam, both tuned", best["TNGD-Adam"], best["Adam"], epoch
        ).of_paper("abstract: language"),
        _judge(
            "With TNGD-Adam the longest t has a lower training loss than the shortest", by_time[-1], by_time[0], epoch
        ).of_paper("Fig. 5b"),
        Verdict(
            "TNGD-Adam has the highest held-out F1, all tuned",
            f"{f1}; the highest mean is that of {highest.method}.",
            highest.method == "TNGD-Adam",
        ).of_paper("abstract: language"),
    ]


def _judge(claim: str, lower: Result, higher: Result, epoch: int) -> Verdict:
    """Judge a claim by the paired differences of the training loss by seed, at the 5 % level."""
    pairs = zip(lower.training_losses(epoch), higher.training_losses(epoch), strict=True)
    test = compare([a - b for a, b in pairs if a is not None and b is not None])
    labels = f"{lower.runs.arm.label} less {higher.runs.arm.label}"
    if test is None:
        return Verdict(claim, f"No seed has both runs ({labels}).", None)
    if len(test.differences) == 1:
        return Verdict(claim, f"{labels}: {test.mean:+.3g}, on one seed.", None)
    outcome = f"{labels}: {test.mean:+.3g} ± {test.high - test.mean:.2g}, p = {test.p:.2g}."
    return Verdict(claim, outcome, test.mean < 0 if test.p < 0.05 else None)


def figure(results: Sequence[Result], *, title: str, caption: str) -> Figure:
    """Draw training losses of the methods, those of TNGD-Adam at each t, and F1 on the test set."""
    drawn = Figure(figsize=(13.0, 5.0), dpi=110, layout="constrained", facecolor="white")
    drawn.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    methods, times, scores = drawn.subplots(1, 3)
    longest = max((result.time for result in results if result.time is not None), default=None)
    _draw_losses(methods, [result for result in results if result.time in (None, longest)], "(a) Training loss")
    of_adam = [result for result in results if result.method == "TNGD-Adam" and "paper's" in result.chosen]
    _draw_losses(times, sorted(of_adam, key=lambda result: result.time or 0.0), "(b) TNGD-Adam, by t")
    _draw_scores(scores, results)
    drawn.supxlabel(textwrap.fill(caption, width=170), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return drawn


def _draw_losses(axes: Axes, results: Sequence[Result], title: str) -> None:
    window = 1
    for (colour, _), result in zip(ARMS, results, strict=False):
        finished = result.runs.finished
        if finished:
            window = averaging_window(len(finished[0].steps))
            losses = np.array([moving_average(np.array([s.loss for s in run.steps]), window) for run in finished])
            lost = count_diverged(result.runs)
            label = f"{result.runs.arm.label} ({result.chosen})" + (f", {lost}" if lost else "")
            median_and_range(axes, np.arange(1, losses.shape[1] + 1), losses, colour=colour, label=label)
    dress(axes, f"{title} (mean of the last {window})")
    axes.set_xlabel("iteration", color=MUTED)
    axes.legend(**LEGEND | {"loc": "lower left"})


def _draw_scores(axes: Axes, results: Sequence[Result]) -> None:
    for place, result in enumerate(results):
        values = result.scores("f1")
        axes.plot(values, [place] * len(values), "o", color=ARMS[0][0], alpha=0.5)
        if values:
            axes.plot([fmean(values)] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=1.8)
    axes.set_yticks(range(len(results)), [f"{r.runs.arm.label}\n({r.chosen})" for r in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlim(left=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    dress(axes, "F1 on the test set, seeds and mean")
    axes.tick_params(axis="y", labelcolor=INK, labelsize=8)
