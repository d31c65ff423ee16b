"""Errors of several methods as a picture: a row for each problem, by steps at the left and by time at the right."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spu_lab.studies.colours import METHOD_COLOURS
from spu_lab.studies.descent import Descent, Point
from spu_lab.training.report import INK, MUTED, dress, legend_below_title, median_and_range


def descent_figure(rows: Mapping[str, Mapping[str, Sequence[Descent]]], *, title: str, caption: str) -> Figure:
    """Draw medians over seeds, and bands from the min to the max; a variant of a method has its colour, and dashes.

    Args:
        rows: runs of all seeds by the problem's title and the method's label, at the same steps for all seeds. A
            label is one of `METHOD_COLOURS`, or one with a comma and the name of a variant.
        title: one line above.
        caption: what a reader must know, below.
    """
    figure = Figure(figsize=(11.0, 1.8 + 3.0 * len(rows)), dpi=110, layout="constrained", facecolor="white")
    figure.suptitle(f"{title}\n\n", x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    options = {"xscale": "log", "yscale": "log"}
    grid = figure.subplots(len(rows), 2, squeeze=False, sharey="row", sharex="col", subplot_kw=options)
    for (left, right), (name, by_method) in zip(grid, rows.items(), strict=True):
        for descents in by_method.values():
            _draw(left, descents, lambda point: point.step)
            _draw(right, descents, lambda point: point.seconds)
        dress(left, f"{name}: relative L2 error")
        dress(right, f"{name}: the same by time")
    for axes, words in zip(grid[-1], ("steps", "wall time + modelled time of the device, s"), strict=True):
        axes.set_xlabel(words, color=MUTED)
    handles = {line.get_label(): line for axes in grid.flat for line in axes.lines}
    legend_below_title(figure, handles, columns=len(handles))
    figure.supxlabel(textwrap.fill(caption, width=150), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _draw(axes: Axes, descents: Sequence[Descent], place: Callable[[Point], float]) -> None:
    """Draw the errors at the medians over seeds of where the points lie."""
    places = np.array([[place(point) for point in descent.points] for descent in descents])
    errors = np.array([[point.error for point in descent.points] for descent in descents])
    method = descents[0].method
    variant = method not in METHOD_COLOURS
    median_and_range(
        axes,
        np.median(places, axis=0),
        errors,
        colour=METHOD_COLOURS[method.partition(",")[0] if variant else method],
        label=method,
        linewidth=1.8,
        linestyle="--" if variant else "-",
    )
