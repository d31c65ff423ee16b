"""Time per iteration of each method against N and against d_z, in the form of Fig. 2 of arXiv 2405.13817."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from spu_lab.studies.colours import METHOD_COLOURS
from spu_lab.studies.iteration_cost import Cost, Size
from spu_lab.studies.iteration_methods import METHODS
from spu_lab.training.report import INK, MUTED, PlainTicks, dress

FORMS: dict[str, tuple[Any, str, str]] = {
    "paper": ("-", "o", "as in the paper: J in full,\nor model calls"),
    "structured": ("--", "s", "structured factors of J"),
    "emulator": (":", "^", "TNGD by the emulator;\nelse by a modelled device"),
}
"""Line, marker and words of each form."""


def iteration_figure(
    against_n: Sequence[Cost], against_outputs: Sequence[Cost], *, title: str, fixed: tuple[str, str], caption: str
) -> Figure:
    """Draw means and standard deviations over seeds.

    Args:
        against_n: costs for the left panel.
        against_outputs: those for the right panel.
        title: one line above.
        fixed: what is fixed in each panel.
        caption: what a reader must know, below.
    """
    figure = Figure(figsize=(12.0, 6.4), dpi=120, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    left, right = figure.subplots(1, 2, sharey=True, subplot_kw={"xscale": "log", "yscale": "log"})
    _draw(left, against_n, lambda size: size.parameters, f"Seconds per iteration ({fixed[0]})", "parameters N")
    words = f"Seconds per iteration ({fixed[1]})"
    _draw(right, against_outputs, lambda size: size.outputs, words, "outputs per sample d_z")
    shown = {METHODS[cost.method].name for cost in (*against_n, *against_outputs)}
    handles = [Line2D([], [], color=colour, label=name) for name, colour in METHOD_COLOURS.items() if name in shown]
    handles += [
        Line2D([], [], color=INK, linestyle=line, marker=marker, label=words) for line, marker, words in FORMS.values()
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK, fontsize=9)
    figure.supxlabel(textwrap.fill(caption, width=165), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _draw(axes: Axes, costs: Sequence[Cost], place: Callable[[Size], float], title: str, words: str) -> None:
    for method in dict.fromkeys(cost.method for cost in costs):
        chosen = sorted((cost for cost in costs if cost.method == method), key=lambda cost: place(cost.size))
        seconds = np.array([cost.seconds for cost in chosen])
        mean, deviation = seconds.mean(axis=1), seconds.std(axis=1, ddof=1 if seconds.shape[1] > 1 else 0)
        line, marker, _ = FORMS[METHODS[method].form]
        axes.errorbar(
            [place(cost.size) for cost in chosen],
            mean,
            (np.minimum(deviation, 0.9 * mean), deviation),  # a logarithmic axis has no place for less
            color=METHOD_COLOURS[METHODS[method].name],
            linestyle=line,
            marker=marker,
            markersize=4.5,
            capsize=2.5,
            linewidth=1.7,
            label=method,
        )
    dress(axes, title)
    axes.set_xlabel(words, color=MUTED)
    axes.xaxis.set_major_locator(PlainTicks())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.xaxis.set_minor_locator(NullLocator())
