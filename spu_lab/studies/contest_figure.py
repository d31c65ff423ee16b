"""The picture of the experiment on MNIST: the paper's figure above, and tuned methods below."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from spu_lab.studies.classification import Evaluated
from spu_lab.studies.colours import METHOD_COLOURS
from spu_lab.studies.contest import TARGETS, Contest, Entrant
from spu_lab.training.report import (
    INK,
    MUTED,
    PAPER_WINDOW,
    dress,
    legend_below_title,
    median_and_range,
    moving_average,
    plain_logarithmic,
)


def contest_figure(
    paper: Sequence[Entrant], contests: Mapping[Contest, Sequence[Entrant]], *, title: str, caption: str
) -> Figure:
    """Draw a row of three panels for the paper's settings, and one for each contest.

    Args:
        paper: Adam and TNGD at the paper's settings.
        contests: tuned methods, all of them in each but those on more images.
        title: one line above.
        caption: what a reader must know, below.
    """
    rows = 1 + len(contests)
    figure = Figure(figsize=(13.0, 2.0 + 3.3 * rows), dpi=110, layout="constrained", facecolor="white")
    figure.suptitle(f"{title}\n\n\n", x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    grid = figure.subplots(rows, 3, squeeze=False)
    _draw_paper(grid[0], paper)
    for axes, (contest, entrants) in zip(grid[1:], contests.items(), strict=True):
        _draw_contest(axes, contest, entrants)
    handles = {line.get_label(): line for axes in grid[1:, 0] for line in axes.lines if line.get_label()[0] != "_"}
    legend_below_title(figure, handles, columns=5)
    figure.supxlabel(textwrap.fill(caption, width=185), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _draw_paper(grid: Sequence[Axes], entrants: Sequence[Entrant]) -> None:
    by_step, by_time, accuracy = grid
    window = min(PAPER_WINDOW, len(entrants[0].runs[0].losses))
    for entrant in entrants:
        losses = np.array([moving_average(np.array(run.losses), window) for run in entrant.runs])
        steps, colour = np.arange(1, losses.shape[1] + 1), METHOD_COLOURS[entrant.label]
        _mean_and_deviation(by_step, steps, losses, colour, "-", entrant.label)
        _mean_and_deviation(by_time, steps * entrant.cost.seconds, losses, colour, "-", f"{entrant.label}, modelled")
        if entrant.method.uses_device:
            label = f"{entrant.label}, modelled, arrays of factors"
            _mean_and_deviation(by_time, steps * entrant.cost.seconds_factors, losses, colour, "--", label)
        measured = np.cumsum(np.mean([run.seconds for run in entrant.runs], axis=0))
        _mean_and_deviation(by_time, measured, losses, colour, ":", f"{entrant.label}, measured")
        places = [at.step for at in entrant.runs[0].evaluations]
        values = np.array([[at.accuracy for at in run.evaluations] for run in entrant.runs])
        _mean_and_deviation(accuracy, np.array(places), values, colour, "o-", entrant.label)
    dress(by_step, f"Paper's settings: training loss (mean of the last {window})")
    dress(by_time, "The same by time")
    dress(accuracy, "Paper's settings: test accuracy")
    for axes in (by_step, by_time):
        plain_logarithmic(axes, "y")
    plain_logarithmic(by_time, "x")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    for axes, words in ((by_step, "iteration"), (by_time, "time, s"), (accuracy, "iteration")):
        axes.set_xlabel(words, color=MUTED)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def _mean_and_deviation(axes: Axes, x: np.ndarray, values: np.ndarray, colour: str, style: str, label: str) -> None:
    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(x))
    axes.plot(x, mean, style, color=colour, linewidth=1.8, markersize=4, label=label)
    axes.fill_between(x, np.maximum(mean - deviation, 1e-3), mean + deviation, color=colour, alpha=0.18, linewidth=0)


def _draw_contest(grid: Sequence[Axes], contest: Contest, entrants: Sequence[Entrant]) -> None:
    clocks: Sequence[tuple[str, str, Callable[[Entrant, Evaluated], float]]] = (
        ("iteration", "test error by iterations", lambda entrant, at: at.step),
        ("modelled time, s", "by modelled time", lambda entrant, at: at.step * entrant.cost.seconds),
        ("measured time, s", "by measured time", lambda entrant, at: at.seconds),
    )
    for axes, (abscissa, words, place) in zip(grid, clocks, strict=True):
        for entrant in entrants:
            runs = [run.evaluations for run in entrant.runs if run.diverged is None]
            if not runs:
                continue
            places = np.median([[place(entrant, at) for at in run] for run in runs], axis=0)
            errors = np.array([[1.0 - at.accuracy for at in run] for run in runs])
            base = entrant.method.label
            style = "-" if entrant.label == base else "--"
            colour = METHOD_COLOURS[base]
            lost = len(entrant.runs) - len(runs)
            label = entrant.label + (f" ({lost} of {len(entrant.runs)} diverged)" if lost else "")
            median_and_range(axes, places, errors, colour=colour, label=label, linewidth=1.7, linestyle=style)
            if abscissa.startswith("modelled") and entrant.method.uses_device and entrant.label != base:
                factors = places / entrant.cost.seconds * entrant.cost.seconds_factors
                axes.plot(factors, np.median(errors, axis=0), color=colour, linewidth=1.2, linestyle=":")
        for target in TARGETS:
            axes.axhline(1.0 - target, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
        plain_logarithmic(axes, "x")
        plain_logarithmic(axes, "y")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.set_xlabel(abscissa, color=MUTED)
        dress(axes, f"{contest.title}: {words}")
