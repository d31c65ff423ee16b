"""A study of devices that approach a digital equivalent: one row for each device, a marker for each value varied."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from host_client.experiments.panels import ARMS, CEILING, REFERENCE
from host_client.experiments.sweeps import Panel, Result
from host_client.report import INK, MUTED, PlainTicks, dress

APART = 0.2
"""Distance between the markers of a row, in rows."""


def plot_convergence(
    path: Path, panels: Sequence[Panel], results: Mapping[str, Result], *, title: str, caption: str
) -> None:
    """Write `convergence_figure` as PNG.

    Raises:
        OSError: when the file cannot be made.
    """
    convergence_figure(panels, results, title=title, caption=caption).savefig(path)


def convergence_figure(panels: Sequence[Panel], results: Mapping[str, Result], *, title: str, caption: str) -> Figure:
    """Draw test losses at the left, and at the right the largest difference from the equivalent with the same seed."""
    figure = Figure(figsize=(10.0, 1.6 + 0.75 * len(panels)), dpi=110, layout="constrained", facecolor="white")
    figure.suptitle(f"{title}\n", x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for row, panel in enumerate(panels):
        reference = results[panel.reference.label]
        _draw_reference(left, row, reference)
        for number, arm in enumerate(panel.arms):
            place = row + APART * (number - (len(panel.arms) - 1) / 2)
            _draw_losses(left, place, number, results[arm.label], label=f"t = {arm.value:g} τ" if row == 0 else "")
            _draw_difference(right, place, number, results[arm.label], reference)
    left.set_yticks(range(len(panels)), [f"{panel.varied}\nvs {panel.reference.label}" for panel in panels])
    left.set_ylim(len(panels) - 0.5, -0.5)
    for axes, words in (
        (left, "Test loss at the end, and from min to max over seeds"),
        (right, "Largest difference from the equivalent"),
    ):
        axes.set_xscale("log")
        dress(axes, words)
        axes.tick_params(axis="y", labelcolor=INK, labelsize=9)
        axes.xaxis.set_minor_locator(NullLocator())
    left.set_xlim(right=min(CEILING, left.get_xlim()[1]))
    left.xaxis.set_major_locator(PlainTicks())
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    below_title = (0.0, 1.0 - 0.36 / figure.get_figheight())
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=below_title, ncols=4, frameon=False)
    figure.supxlabel(textwrap.fill(caption, width=140), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _draw_reference(axes: Axes, row: int, reference: Result) -> None:
    if losses := reference.finals("loss"):
        axes.fill_betweenx([row - 0.4, row + 0.4], min(losses), max(losses), color=REFERENCE, alpha=0.1, linewidth=0)
        label = "digital equivalent" if row == 0 else ""
        axes.plot([median(losses)] * 2, [row - 0.4, row + 0.4], color=REFERENCE, linewidth=1.5, zorder=5, label=label)


def _draw_losses(axes: Axes, place: float, number: int, result: Result, *, label: str) -> None:
    if losses := result.finals("loss"):
        colour, marker = ARMS[number]
        middle = median(losses)
        bar = [[middle - min(losses)], [max(losses) - middle]]
        axes.errorbar([middle], [place], xerr=bar, color=colour, marker=marker, linestyle="", capsize=2.5, label=label)


def _draw_difference(axes: Axes, place: float, number: int, result: Result, reference: Result) -> None:
    paired = result.against(reference)
    largest = max(map(abs, paired.differences)) if paired is not None else 0.0
    if largest > 0.0:
        colour, marker = ARMS[number]
        axes.plot([largest], [place], color=colour, marker=marker, linestyle="")
