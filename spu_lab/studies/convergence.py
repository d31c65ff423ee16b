"""A study of devices that approach a digital equivalent: one row for each device, a marker for each value varied."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from spu_lab.studies.panels import ARMS, CEILING, REFERENCE, count_diverged, describe_missing, median_end
from spu_lab.studies.sweeps import ArmResult, Panel
from spu_lab.training.report import INK, MUTED, PlainTicks, dress, legend_below_title

APART = 0.2
"""Distance between the markers of a row, in rows."""


def convergence_figure(
    panels: Sequence[Panel], results: Mapping[str, ArmResult], *, title: str, caption: str
) -> Figure:
    """Draw test losses at the left, and at the right the largest difference from the equivalent with the same seed."""
    figure = Figure(figsize=(10.0, 1.6 + 0.75 * len(panels)), dpi=110, layout="constrained", facecolor="white")
    figure.suptitle(f"{title}\n\n", x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2), subplot_kw={"xscale": "log"})
    for row, panel in enumerate(panels):
        reference = results[panel.reference.label]
        _draw_reference(left, row, reference)
        for number, arm in enumerate(panel.arms):
            place = row + APART * (number - (len(panel.arms) - 1) / 2)
            _draw_losses(left, place, number, results[arm.label])
            _draw_difference(right, place, number, results[arm.label], reference)
    left.set_yticks(range(len(panels)), [_name(panel, results[panel.reference.label]) for panel in panels])
    left.set_ylim(len(panels) - 0.5, -0.5)
    for axes, words in (
        (left, "Test loss at the end, and from min to max over seeds"),
        (right, "Largest difference from the equivalent"),
    ):
        dress(axes, words)
        axes.tick_params(axis="y", labelcolor=INK, labelsize=9)
        axes.xaxis.set_minor_locator(NullLocator())
    left.set_xlim(right=min(CEILING, left.get_xlim()[1]))
    left.xaxis.set_major_locator(PlainTicks())
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    handles, labels = left.get_legend_handles_labels()
    legend_below_title(figure, dict(zip(labels, handles, strict=True)), columns=4)  # a label may be in several rows
    figure.supxlabel(textwrap.fill(caption, width=140), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _draw_reference(axes: Axes, row: int, reference: ArmResult) -> None:
    if losses := reference.finals("loss"):
        axes.fill_betweenx([row - 0.4, row + 0.4], min(losses), max(losses), color=REFERENCE, alpha=0.1, linewidth=0)
        label = "digital equivalent"
        axes.plot([median(losses)] * 2, [row - 0.4, row + 0.4], color=REFERENCE, linewidth=1.5, zorder=5, label=label)


def _name(panel: Panel, reference: ArmResult) -> str:
    lost = count_diverged(reference)
    return f"{panel.varied}\nvs {panel.reference.label}" + (f"\n({lost})" if lost else "")


def _draw_losses(axes: Axes, place: float, number: int, result: ArmResult) -> None:
    (colour, marker), end, losses = ARMS[number], median_end(result), result.finals("loss") or [math.nan]
    style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "", "capsize": 2.5}
    bar = [[end - min(losses)], [max(losses) - end]]
    axes.errorbar([end], [place], xerr=bar, label=f"t = {result.arm.value:g} τ", **style)
    if note := ", ".join(describe_missing(result, "▶")):
        across = axes.get_yaxis_transform()
        axes.annotate(note, (0.99, place), xycoords=across, ha="right", va="center", fontsize=8, color=colour)


def _draw_difference(axes: Axes, place: float, number: int, result: ArmResult, reference: ArmResult) -> None:
    paired = result.against(reference)
    largest = max(map(abs, paired.differences)) if paired is not None else 0.0
    if largest > 0.0:
        colour, marker = ARMS[number]
        axes.plot([largest], [place], color=colour, marker=marker, linestyle="")
