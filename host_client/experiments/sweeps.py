"""Training runs that differ in one property of the device: over seeds, with bands, and differences paired by seed."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.console import Console

from host_client.blocking import connect
from host_client.experiments.tables import show_and_write
from host_client.provenance import provenance
from host_client.report import COLOURS, GRID, INK, MUTED
from host_client.results import summary, write_json
from host_client.runner import run as run_once
from host_client.settings import Settings
from host_client.tasks.task import Task
from host_client.train import Run
from spu_link.errors import DeviceFault


@dataclass(frozen=True)
class Arm:
    """One device.

    Attributes:
        varied: what is varied.
        value: of it, as the abscissa.
        settings: of the run, beyond those of all arms.
        board: options of the driver ``analog``; none is the ideal device.
    """

    varied: str
    value: float
    settings: Mapping[str, float] = field(default_factory=dict)
    board: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name for people."""
        return f"{self.varied} {self.value:g}"


@dataclass(frozen=True)
class Result:
    """An arm's runs by seed; a run that diverged is None."""

    arm: Arm
    runs: tuple[Run | None, ...]

    def finals(self) -> list[float]:
        """Test losses at the end, by seed; infinite where a run diverged."""
        return [run.final("test").loss if run is not None else math.inf for run in self.runs]

    def accuracies(self) -> list[float]:
        """Test accuracies at the end, of the runs that did not diverge."""
        return [run.final("test").accuracy for run in self.runs if run is not None]

    def differences(self, reference: Result) -> list[float]:
        """Test loss less that of the reference with the same seed; only where neither diverged."""
        pairs = zip(self.finals(), reference.finals(), strict=True)
        return [mine - theirs for mine, theirs in pairs if math.isfinite(mine) and math.isfinite(theirs)]


def sweep(
    task: Task, arms: Sequence[Arm], common: Mapping[str, float | str], seeds: Sequence[int], console: Console
) -> list[Result]:
    """Run every arm with every seed, each on a device of its own in this process, on a stepped clock.

    The seed is that of the network, the batches and the device, so that arms differ in nothing but their property.

    Raises:
        SpuError: when a device cannot be opened, or fails otherwise than by a state that has grown beyond all numbers.
    """
    results = []
    for arm in arms:
        runs: list[Run | None] = []
        for seed in seeds:
            settings = Settings.model_validate({**common, **arm.settings, "seed": seed})
            with connect("inproc:", driver="analog", clock="stepped", seed=seed, driver_option=dict(arm.board)) as spu:
                try:
                    label = f"{arm.label}, seed {seed}"
                    runs.append(run_once(task, settings, spu, label=label, console=console, each_evaluation=False))
                except (FloatingPointError, DeviceFault) as error:
                    if isinstance(error, DeviceFault) and "beyond all numbers" not in error.message:
                        raise
                    console.print(f"{arm.label}, seed {seed}: diverged, {error}", highlight=False)
                    runs.append(None)
        results.append(Result(arm, tuple(runs)))
    return results


def write(
    folder: Path,
    name: str,
    results: Sequence[Result],
    references: Mapping[str, Result],
    console: Console,
    *,
    title: str,
    caption: str,
    labels: Mapping[str, str],
) -> None:
    """Write NAME.csv, .json, .md and .png.

    Args:
        folder: where; made if need be.
        name: of the files.
        results: all arms.
        references: the arm that the others of a property are compared with, by property.
        console: where the table is shown.
        title: one line.
        caption: what a reader must know.
        labels: of the abscissa, by property.

    Raises:
        OSError: when the files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("varied", "value", "seed", "step", "loss"))
        for result in results:
            for run in filter(None, result.runs):
                for step in run.steps:
                    writer.writerow((result.arm.varied, result.arm.value, run.settings.seed, step.step, step.loss))
    rows = [_row(result, references[result.arm.varied]) for result in results]
    columns = ("device", "test loss", "test accuracy", "difference of loss", "p", "diverged")
    show_and_write(folder / f"{name}.md", columns, rows, console, title=title)
    arms = [
        {
            "varied": r.arm.varied,
            "value": r.arm.value,
            "board": dict(r.arm.board),
            "differences": r.differences(references[r.arm.varied]),
            "runs": [summary(run) if run is not None else None for run in r.runs],
        }
        for r in results
    ]
    write_json(folder / f"{name}.json", {**provenance(), "arms": arms})
    _plot(folder / f"{name}.png", results, references, title=title, caption=caption, labels=labels)
    console.print(f"CSV, JSON, table and plot: {folder}", highlight=False)


def paired_p(differences: Sequence[float]) -> float:
    """Chance that differences by seed are as large as these if there is none: two-sided t test, for at least two."""
    if len(differences) < 2 or not any(differences):
        return math.nan
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _row(result: Result, reference: Result) -> list[str]:
    finals = [loss for loss in result.finals() if math.isfinite(loss)]
    differences = result.differences(reference)
    p = paired_p(differences) if result is not reference else math.nan
    return [
        result.arm.label,
        _mean(finals, "{:.4f}"),
        _mean([100 * a for a in result.accuracies()], "{:.2f}") + " %",
        "reference" if result is reference else _mean(differences, "{:+.4f}"),
        "–" if math.isnan(p) else f"{p:.2g}",
        f"{len(result.runs) - len(finals)} of {len(result.runs)}",
    ]


def _mean(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    spread = f" ± {form.replace('+', '').format(stdev(values))}" if len(values) > 1 else ""
    return form.format(fmean(values)) + spread


def _plot(
    path: Path,
    results: Sequence[Result],
    references: Mapping[str, Result],
    *,
    title: str,
    caption: str,
    labels: Mapping[str, str],
) -> None:
    figure = Figure(figsize=(max(9.0, 3.6 * len(labels)), 4.8), dpi=160, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    panels = figure.subplots(1, len(labels), squeeze=False, sharey=True)[0]
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        _panel(axes, [r for r in results if r.arm.varied == name], references[name], label)
    panels[0].set_ylabel("test loss", color=MUTED)
    figure.supxlabel(caption, x=0.012, ha="left", fontsize=8.5, color=MUTED)
    figure.savefig(path)


def _panel(axes: Axes, results: Sequence[Result], reference: Result, label: str) -> None:
    """Test loss against the property, mean and one standard deviation; the reference as a band across."""
    expected = np.array([loss for loss in reference.finals() if math.isfinite(loss)])
    spread = expected.std(ddof=1) if len(expected) > 1 else 0.0
    axes.axhspan(expected.mean() - spread, expected.mean() + spread, color=COLOURS[1], alpha=0.15, linewidth=0)
    axes.axhline(expected.mean(), color=COLOURS[1], linewidth=1.2, label=f"reference: {reference.arm.label}")
    shown = [r for r in results if r is not reference and any(map(math.isfinite, r.finals()))]
    x = [r.arm.value for r in shown]
    losses = [[loss for loss in r.finals() if math.isfinite(loss)] for r in shown]
    means = [fmean(values) for values in losses]
    spreads = [stdev(values) if len(values) > 1 else 0.0 for values in losses]
    axes.errorbar(x, means, spreads, color=COLOURS[0], marker="o", capsize=3, linewidth=2.0)
    if x and min(x) > 0 and max(x) / min(x) > 50:
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.set_xlabel(label, color=MUTED)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
