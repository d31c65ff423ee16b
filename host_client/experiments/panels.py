"""Panels of a study: training losses above, test losses against what is varied below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from host_client.experiments.sweeps import Panel, Result
from host_client.report import (
    COLOURS,
    INK,
    MUTED,
    averaging_window,
    dress,
    mean_and_band,
    moving_average,
    plain_logarithmic,
)

REFERENCE = COLOURS[1]
ACROSS = 4
"""Most panels side by side, so that words can still be read on a page."""

CEILING = 10.0
"""Highest loss shown; one who guesses has ln 10 = 2.3."""


def plot_panels(
    path: Path, panels: Sequence[Panel], results: Mapping[str, Result], *, title: str, caption: str
) -> None:
    """Draw all panels, four side by side, as PNG: means over seeds, and bands and bars of one standard deviation.

    Raises:
        OSError: when the file cannot be made.
    """
    lines = -(-len(panels) // ACROSS)
    columns = -(-len(panels) // lines)
    size = (max(9.0, 3.4 * columns), 1.0 + 7.4 * lines)
    figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    grid = figure.add_gridspec(2 * lines, columns)
    tops: list[Axes] = []
    bottoms: list[Axes] = []
    for place, panel in enumerate(panels):
        line, column = divmod(place, columns)
        for drawn, row in ((tops, 2 * line), (bottoms, 2 * line + 1)):
            drawn.append(figure.add_subplot(grid[row, column], sharey=drawn[0] if drawn else None))
            drawn[-1].tick_params(labelleft=column == 0)
        reference, others = results[panel.reference.label], [results[arm.label] for arm in panel.arms]
        _curves(tops[-1], reference, others)
        _ends(bottoms[-1], reference, others, panel.varied)
    for drawn in (tops, bottoms):
        drawn[0].set_ylim(top=min(CEILING, drawn[0].get_ylim()[1]))
    told = textwrap.fill(caption, width=int(14 * size[0]))
    figure.supxlabel(told, x=0.012, ha="left", fontsize=8.5, color=MUTED)
    figure.savefig(path)


def _curves(axes: Axes, reference: Result, others: Sequence[Result]) -> None:
    """Moving averages of the training loss by iteration."""
    shades = matplotlib.colormaps["YlOrRd"](np.linspace(0.35, 0.95, len(others)))
    colours = [REFERENCE, *(matplotlib.colors.to_hex(shade) for shade in shades)]
    window = averaging_window(len(reference.finished[0].steps))
    for colour, result in zip(colours, (reference, *others), strict=True):
        losses = np.array([[step.loss for step in run.steps] for run in result.finished])
        if not losses.size:
            continue
        smooth = np.array([moving_average(row, window) for row in losses])
        mean_and_band(axes, np.arange(1, losses.shape[1] + 1), smooth, colour, result.arm.label)
    dress(axes, f"Training loss (mean of the last {window})")
    axes.set_xlabel("iteration", color=MUTED)
    plain_logarithmic(axes)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def _ends(axes: Axes, reference: Result, others: Sequence[Result], varied: str) -> None:
    """Test losses against the property, how many runs diverged, and the reference as a band across."""
    expected = reference.finals("loss")
    mean, spread = fmean(expected), _spread(expected)
    axes.axhspan(mean - spread, mean + spread, color=REFERENCE, alpha=0.15, linewidth=0)
    axes.axhline(mean, color=REFERENCE, linewidth=1.2, label=reference.arm.label)
    ends = {r.arm.value: losses for r in others if (losses := r.finals("loss")) and fmean(losses) < CEILING}
    means, spreads = [fmean(losses) for losses in ends.values()], [_spread(losses) for losses in ends.values()]
    axes.errorbar(list(ends), means, spreads, color=COLOURS[0], marker="o", capsize=3, linewidth=2.0)
    values = [result.arm.value for result in others]
    axes.plot(values, [mean] * len(values), linewidth=0)  # so that the axis also spans where all runs diverged
    if min(values) > 0 and max(values) / min(values) > 50:
        axes.set_xscale("log")
    else:
        axes.set_xticks(values)
    for result in others:
        if told := _beyond(result):
            place, across = (result.arm.value, 0.98), axes.get_xaxis_transform()
            axes.annotate(told, place, xycoords=across, ha="center", va="top", fontsize=8, color=MUTED)
    dress(axes, "Test loss at the end")
    plain_logarithmic(axes)
    axes.set_xlabel(varied, color=MUTED)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def _beyond(result: Result) -> str:
    """What of a result lies above the plot, in words."""
    losses, lost = result.finals("loss"), len(result.runs) - len(result.finished)
    high = f"▲ {fmean(losses):.1g}" if losses and fmean(losses) > CEILING else ""
    return "\n".join(filter(None, (high, f"{lost} of {len(result.runs)}\ndiverged" if lost else "")))


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
