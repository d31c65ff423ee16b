"""A study as a picture: one row for each property varied, training losses at the left, test losses at the right."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spu_lab.studies.sweeps import ArmResult, Panel
from spu_lab.training.report import (
    INK,
    MUTED,
    averaging_window,
    dress,
    median_and_range,
    moving_average,
    plain_logarithmic,
)

REFERENCE = "#111827"
DASHES = (0, (4, 1.6))
"""Of the reference, which lies on top of the others, so that they are seen where they lie below it."""

ARMS = (
    ("#0072b2", "o"),
    ("#e69f00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#56b4e9", "v"),
    ("#d55e00", "P"),
)
"""Colour and marker of each arm: hues of Okabe and Ito, which colour-blind readers can distinguish."""

LEGEND: dict[str, Any] = {
    "loc": "upper right",  # where falling losses leave room
    "framealpha": 0.85,
    "edgecolor": "none",
    "labelcolor": INK,
    "fontsize": 8,
}

CEILING = 10.0
"""Max loss shown; guessing has ln 10 = 2.3."""


def panels_figure(panels: Sequence[Panel], results: Mapping[str, ArmResult], *, title: str, caption: str) -> Figure:
    """Draw one row for each panel: medians over seeds, and bands and bars from the min to the max."""
    figure = Figure(figsize=(10.0, 1.0 + 2.7 * len(panels)), dpi=110, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    grid = figure.subplots(len(panels), 2, squeeze=False, sharey="col", width_ratios=(3, 2))
    for (left, right), panel in zip(grid, panels, strict=True):
        reference, others = results[panel.reference.label], [results[arm.label] for arm in panel.arms]
        _draw_curves(left, reference, others)
        _draw_ends(right, reference, others, panel.varied)
    for axes in grid[0]:
        axes.set_ylim(top=min(CEILING, axes.get_ylim()[1]))
    figure.supxlabel(textwrap.fill(caption, width=140), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _draw_curves(axes: Axes, reference: ArmResult, others: Sequence[ArmResult]) -> None:
    """Moving averages of the training loss by iteration."""
    finished = [run for result in (reference, *others) for run in result.finished]
    window = averaging_window(len(finished[0].steps)) if finished else 1
    for (colour, _), result in zip(ARMS, others, strict=False):
        if result.finished:
            label = result.arm.label + (f" ({lost})" if (lost := count_diverged(result)) else "")
            median_and_range(axes, *_smooth(result, window), colour=colour, label=label)
    if reference.finished:
        style: dict[str, Any] = {"linestyle": DASHES, "linewidth": 1.8, "zorder": 5}
        median_and_range(
            axes, *_smooth(reference, window), colour=REFERENCE, label=f"{reference.arm.label} (reference)", **style
        )
    dress(axes, f"Training loss (mean of the last {window})")
    axes.set_xlabel("iteration", color=MUTED)
    plain_logarithmic(axes)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[-1:] + handles[:-1], labels[-1:] + labels[:-1], **LEGEND)


def _smooth(result: ArmResult, window: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    losses = np.array([moving_average(np.array([step.loss for step in run.steps]), window) for run in result.finished])
    return np.arange(1, losses.shape[1] + 1), losses


def _draw_ends(axes: Axes, reference: ArmResult, others: Sequence[ArmResult], varied: str) -> None:
    """Test losses against the property, how many runs diverged, and the reference as a band across.

    A line joins arms as long as their values increase.
    """
    values = [result.arm.value for result in others]
    shown = [median_end(result) for result in others]  # a line must not pass over what is missing
    families = [0, *(k for k in range(1, len(values)) if values[k] <= values[k - 1]), len(values)]
    for first, after in pairwise(families):
        axes.plot(values[first:after], shown[first:after], color=MUTED, linewidth=1.0, zorder=1)
    for (colour, marker), result, end in zip(ARMS, others, shown, strict=False):
        if not np.isnan(end):
            losses = result.finals("loss")
            bar = [[end - min(losses)], [max(losses) - end]]
            axes.errorbar(
                [result.arm.value], [end], bar, color=colour, marker=marker, markersize=7, capsize=3, linewidth=1.6
            )
    if expected := reference.finals("loss"):
        axes.axhspan(min(expected), max(expected), color=REFERENCE, alpha=0.1, linewidth=0)
        label = f"{reference.arm.label} (reference)"
        axes.axhline(median(expected), color=REFERENCE, linestyle=DASHES, linewidth=1.5, zorder=5, label=label)
        axes.legend(**LEGEND | {"loc": "best"})
    if min(values) > 0 and max(values) / min(values) > 50:
        axes.set_xscale("log")
    else:
        ticks: list[float] = []
        for value in sorted(values):  # labels must not overlap
            if not ticks or value - ticks[-1] > 0.12 * (max(values) - min(values)):
                ticks.append(value)
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.margins(x=0.12)
    for result in others:
        if parts := describe_missing(result, "▲"):
            note = "\n".join(parts).replace(" diverged", "\ndiverged")
            place, across = (result.arm.value, 0.03), axes.get_xaxis_transform()
            axes.annotate(note, place, xycoords=across, ha="center", va="bottom", fontsize=8, color=MUTED)
    dress(axes, "Test loss at the end")
    plain_logarithmic(axes)
    axes.set_xlabel(varied, color=MUTED)


def median_end(result: ArmResult) -> float:
    """Return the median test loss at the end; NaN where all runs diverged or it is above `CEILING`."""
    losses = result.finals("loss")
    return end if losses and (end := median(losses)) <= CEILING else np.nan


def describe_missing(result: ArmResult, arrow: str) -> list[str]:
    """Return what a marker at `median_end` cannot show: a median above `CEILING`, after an arrow, and diverged runs."""
    losses = result.finals("loss")
    above = f"{arrow} {end:.2g}" if losses and (end := median(losses)) > CEILING else ""
    return [part for part in (above, count_diverged(result)) if part]


def count_diverged(result: ArmResult) -> str:
    """Return how many runs diverged, in words; empty where none did."""
    lost = len(result.runs) - len(result.finished)
    return f"{lost} of {len(result.runs)} diverged" if lost else ""
