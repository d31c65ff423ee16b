"""Errors against each property of a device as a picture: a panel for each, a line for each way to read the device."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spu_lab.studies.panels import ARMS, REFERENCE
from spu_lab.studies.specification import AVERAGED, FACTOR, PLAIN, REFINED, Knob
from spu_lab.training.report import INK, MUTED, dress, legend_below_title, median_and_range

LINES: Final = {PLAIN: (*ARMS[0], "-"), AVERAGED: (*ARMS[1], ":"), REFINED: (*ARMS[2], "--")}
"""Colour, marker and style of each way to read."""

IN_A_ROW: Final = 3
"""Panels in a row, at most."""


def specification_figure(
    knobs: Sequence[Knob],
    errors: Mapping[tuple[str, str], Mapping[float, Sequence[float]]],
    ideal: Sequence[float],
    *,
    title: str,
    caption: str,
) -> Figure:
    """Draw medians over seeds, and bands from the min to the max.

    Args:
        knobs: properties, a panel each.
        errors: of all seeds by value, by the name of a property and the way to read.
        ideal: errors of the ideal device.
        title: one line above.
        caption: what a reader must know, below.
    """
    columns = min(IN_A_ROW, len(knobs))
    rows = -(-len(knobs) // columns)
    figure = Figure(figsize=(11.0, 1.6 + 2.7 * rows), dpi=110, layout="constrained", facecolor="white")
    figure.suptitle(f"{title}\n\n", x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, knob in zip(grid.flat, knobs, strict=False):
        _draw(axes, knob, {way: errors[knob.name, way] for way in LINES if way in knob.ways}, ideal)
    for axes in list(grid.flat)[len(knobs) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("relative L2 error", color=MUTED)
    legend_below_title(figure, {line.get_label(): line for axes in grid.flat for line in axes.lines}, columns=4)
    figure.supxlabel(textwrap.fill(caption, width=150), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _draw(
    axes: Axes, knob: Knob, by_way: Mapping[str, Mapping[float, Sequence[float]]], ideal: Sequence[float]
) -> None:
    """Draw the errors by one property, which is better to the right."""
    axes.set_yscale("log")
    if max(knob.values) > 100 * min(knob.values):
        axes.set_xscale("log")
    else:
        axes.set_xticks(knob.values, [f"{value:g}" for value in knob.values])
    end = median(ideal)
    axes.axhspan(end / FACTOR, FACTOR * end, color=REFERENCE, alpha=0.08, linewidth=0)
    axes.axhline(end, color=REFERENCE, linewidth=1.2, label=f"ideal device, and a factor of {FACTOR:g}")
    for way, by_value in by_way.items():
        colour, marker, style = LINES[way]
        values = np.array([by_value[value] for value in knob.values]).T
        x = np.array(knob.values)
        median_and_range(axes, x, values, colour=colour, label=way, marker=marker, linestyle=style, linewidth=1.8)
    if knob.values[0] < knob.values[-1]:
        axes.invert_xaxis()
    axes.set_xlabel("better →", color=MUTED)
    dress(axes, knob.title[0].upper() + knob.title[1:])
