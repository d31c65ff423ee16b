"""Analog time as a picture: errors of readings with their bounds at the left, training at the right."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from spu_lab.studies.colours import METHOD_COLOURS
from spu_lab.studies.panels import LEGEND, REFERENCE
from spu_lab.studies.readings_by_time import Curve
from spu_lab.studies.small_problems import Kind
from spu_lab.training.report import INK, MUTED, PlainTicks, dress, median_and_range, plain_logarithmic

FOUND, BY_DAMPING = "#d55e00", "#6b7280"


class Ended(Protocol):
    """How a training run ended."""

    @property
    def score(self) -> float:
        """What is compared."""
        ...

    @property
    def time(self) -> float:
        """Device time a step, in 1/λ."""
        ...


def analog_time_figure(
    problems: Sequence[tuple[Kind, Sequence[Curve], Mapping[str, Sequence[Ended]]]], *, title: str, caption: str
) -> Figure:
    """Draw a row for each problem: medians over seeds, and bands or bars from the min to the max.

    Args:
        problems: with the curves of all seeds, and the training runs of all seeds by t, in 1/λ, or ``"auto"``.
        title: one line above.
        caption: what a reader must know, below.
    """
    figure = Figure(figsize=(11.0, 1.3 + 2.9 * len(problems)), dpi=110, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    grid = figure.subplots(len(problems), 2, squeeze=False, sharex="col")
    for (left, right), (kind, curves, by_time) in zip(grid, problems, strict=True):
        _draw_readings(left, kind, curves)
        _draw_training(right, kind, by_time)
    grid[0][0].legend(**LEGEND | {"loc": "lower left"})
    grid[0][1].legend(**LEGEND)
    grid[-1][0].set_xlabel("tλ", color=MUTED)
    grid[-1][1].set_xlabel("tλ, mean over the steps", color=MUTED)
    figure.supxlabel(textwrap.fill(caption, width=150), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _draw_readings(axes: Axes, kind: Kind, curves: Sequence[Curve]) -> None:
    x = np.array(curves[0].times) * kind.damping
    spectral = np.array([curve.spectral for curve in curves])
    bounds = np.array([curve.bound_times for curve in curves]) * kind.damping
    median_and_range(axes, x, spectral, colour=BY_DAMPING, label="bound by λ alone", linestyle=":")
    axes.plot(
        np.median(bounds, axis=0),
        curves[0].bounds,
        color=FOUND,
        linestyle="--",
        linewidth=1.8,
        label="bound, 16 products",
    )
    errors = np.array([curve.errors for curve in curves])
    median_and_range(axes, x, errors, colour=METHOD_COLOURS["TNGD"], label="measured")
    found = median(curve.automatic for curve in curves) * kind.damping
    axes.axvline(found, color=FOUND, linewidth=1.2, label="t found for 10 %")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=3e-4)
    dress(axes, f"{kind.title}: relative error of a reading, norm of F + λI")


def _draw_training(axes: Axes, kind: Kind, by_time: Mapping[str, Sequence[Ended]]) -> None:
    fixed = sorted((trainings for label, trainings in by_time.items() if label != "auto"), key=lambda t: t[0].time)
    times = np.array([median(t.time for t in trainings) for trainings in fixed])
    scores = np.array([[t.score for t in trainings] for trainings in fixed]).T
    median_and_range(axes, times, scores, colour=METHOD_COLOURS["TNGD"], label="t fixed", marker="o")
    found = by_time["auto"]
    place, values = median(t.time for t in found), [t.score for t in found]
    end = median(values)
    axes.errorbar(
        [place],
        [end],
        [[end - min(values)], [max(values) - end]],
        color=FOUND,
        marker="D",
        markersize=7,
        capsize=3,
        linestyle="none",
        label="t found at each step",
        zorder=5,
    )
    axes.axhline(min(np.median(scores, axis=0)), color=REFERENCE, linewidth=1.0, linestyle="--", label="best fixed t")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(PlainTicks())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    plain_logarithmic(axes)
    dress(axes, f"{kind.title}: {kind.score}")
