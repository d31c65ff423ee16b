"""The picture of the demonstration: a differential equation and MNIST, each by TNGD and by Adam."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from spu_lab.studies.classification import ClassifierRun
from spu_lab.studies.colours import METHOD_COLOURS
from spu_lab.studies.side_by_side import Solved, exact_values
from spu_lab.training.report import INK, MUTED, PlainTicks, dress, plain_logarithmic

ERRORS = "viridis"
"""Colour map of errors."""


def front_page(
    solved: Mapping[str, Solved], runs: Mapping[str, ClassifierRun], *, title: str, captions: tuple[str, str]
) -> Figure:
    """Draw both problems, a row each.

    Args:
        solved: what each method came to on the equation.
        runs: on MNIST, by method.
        title: one line above.
        captions: what a reader must know of each row.
    """
    figure = Figure(figsize=(13.0, 8.2), dpi=130, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=15, fontweight="bold", color=INK)
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    curve, *images = above.subplots(1, 4, width_ratios=(1.7, 1.0, 1.0, 1.0))
    _draw_errors(curve, solved)
    _draw_images(above, images, solved)
    loss, accuracy = below.subplots(1, 2, width_ratios=(1.5, 1.0))
    _draw_losses(loss, runs)
    _draw_accuracies(accuracy, runs)
    for part, caption in zip((above, below), captions, strict=True):
        text = "\n".join(textwrap.fill(line, width=200) for line in caption.splitlines())
        part.supxlabel(text, x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _draw_errors(axes: Axes, solved: Mapping[str, Solved]) -> None:
    for method, result in solved.items():
        points = result.descent.points
        axes.plot(
            [point.wall_seconds for point in points],
            [point.error for point in points],
            color=METHOD_COLOURS[method],
            linewidth=2.2,
            label=f"{method}, {points[-1].step:,} steps",
        )
    axes.set_yscale("log")
    axes.set_xlabel("wall time, device included, s", color=MUTED)
    dress(axes, "Poisson equation: relative L2 error")
    axes.legend(frameon=False, labelcolor=INK, fontsize=10)


def _draw_images(figure: Figure, places: list[Axes], solved: Mapping[str, Solved]) -> None:
    """Draw the solution of TNGD, and the errors of both on one scale of colours."""
    expected = exact_values()
    frame: dict[str, Any] = {"extent": (0.0, 1.0, 0.0, 1.0), "origin": "lower"}
    solution = places[0].imshow(solved["TNGD"].values.T, cmap="RdBu_r", vmin=-1.0, vmax=1.0, **frame)
    figure.colorbar(solution, ax=places[0], orientation="horizontal", fraction=0.06, pad=0.02)
    places[0].set_title("TNGD: u(x, y)", loc="left", fontsize=11, color=INK)
    errors = {method: np.abs(result.values - expected) for method, result in solved.items()}
    largest = max(error.max() for error in errors.values())
    smallest = max(min(np.median(error) for error in errors.values()) / 10.0, 1e-12)
    norm = LogNorm(smallest, largest)
    for axes, (method, error) in zip(places[1:], errors.items(), strict=True):
        image = axes.imshow(np.maximum(error, smallest).T, cmap=ERRORS, norm=norm, **frame)
        figure.colorbar(image, ax=axes, orientation="horizontal", fraction=0.06, pad=0.02)
        axes.set_title(f"{method}: error |u − u*|", loc="left", fontsize=11, color=INK)
    for axes in places:
        axes.set_xticks([])
        axes.set_yticks([])


def _draw_losses(axes: Axes, runs: Mapping[str, ClassifierRun]) -> None:
    for method, run in runs.items():
        places = range(1, len(run.losses) + 1)
        axes.plot(places, run.losses, color=METHOD_COLOURS[method], linewidth=2.0, label=method)
    plain_logarithmic(axes)
    axes.set_xlabel("step", color=MUTED)
    dress(axes, "MNIST: training loss of each batch")
    axes.legend(frameon=False, labelcolor=INK, fontsize=10)


def _draw_accuracies(axes: Axes, runs: Mapping[str, ClassifierRun]) -> None:
    for method, run in runs.items():
        places, wrong = [each.step for each in run.evaluations], [1.0 - each.accuracy for each in run.evaluations]
        axes.plot(places, wrong, color=METHOD_COLOURS[method], marker="o", markersize=4, linewidth=2.0, label=method)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(PlainTicks())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("step", color=MUTED)
    dress(axes, "MNIST: test images classified wrongly")
