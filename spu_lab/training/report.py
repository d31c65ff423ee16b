"""Results for people: a table and a plot of runs side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from spu_lab.result_folder import write_whole
from spu_lab.training.loop import Run

COLOURS = ("#c2410c", "#1d4ed8", "#047857", "#7e22ce", "#64748b")
"""Colours of the runs, in their order; distinguishable in greyscale and by colour-blind readers."""

INK, MUTED, GRID = "#1f2937", "#6b7280", "#e5e7eb"

PAPER_WINDOW = 200
"""Points in the paper's moving average."""


def comparison_table(runs: Mapping[str, Run], title: str | None = None) -> Group:
    """Return loss, accuracy, time per iteration and bytes per upload of runs, a column each under its label.

    Two runs fit into 60 columns of a terminal.
    """
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for label in runs:
        table.add_column(label, justify="right", no_wrap=True)
    for name, values in zip(
        ("steps", "training loss", "test loss", "test accuracy", "time a step", "upload", "Jacobian"),
        zip(*map(_figures, runs.values()), strict=True),
        strict=True,
    ):
        table.add_row(name, *values)
    jacobian = decimal(next(iter(runs.values())).jacobian_bytes)
    caption = (
        "Training loss: mean of the last 50 batches. Time and upload: medians over steps.\n"
        f"Jacobian: a batch's explicit float32 rows, {jacobian}, against the upload."
    )
    for label, run in runs.items():
        if run.modelled_seconds:
            ms, mj = (1e3 * total / len(run.steps) for total in (run.modelled_seconds, run.modelled_joules))
            caption += f"\nA device by the timing model, {label}: {ms:.3g} ms and {mj:.3g} mJ a step."
    heading = [] if title is None else [Text(title, style="bold")]  # a table's own title is as narrow as the table
    return Group(*heading, table, Text(caption))


def _figures(run: Run) -> tuple[str, ...]:
    """Return the column of a run in the table."""
    test = run.final("test")
    uploads = run.bytes_per_upload > 0
    return (
        f"{len(run.steps)}",
        f"{run.training_loss():.4f}",
        f"{test.loss:.4f}",
        f"{test.accuracy:.2%}",
        f"{1e3 * run.seconds_per_iteration:.1f} ms",
        decimal(int(run.bytes_per_upload)) if uploads else "–",
        f"{run.jacobian_bytes / run.bytes_per_upload:.1f} ×" if uploads else "–",
    )


def in_tau(duration: float) -> str:
    """A device time in words, in three digits or in full."""
    return f"{duration:.3g} τ" if duration < 1000.0 else f"{duration:,.0f} τ"


def moving_average(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of the last `window` values at each place; of all so far where there are fewer."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(1, len(values) + 1)
    first = np.maximum(places - window, 0)
    averages: NDArray[np.float64] = (sums[places] - sums[first]) / (places - first)
    return averages


def averaging_window(steps: int) -> int:
    """The paper's 200 points where a run is long enough to show it, a twentieth of the run where it is not."""
    return max(1, min(PAPER_WINDOW, steps // 20))


def plot_runs(runs: Mapping[str, Sequence[Run]], path: Path, *, title: str, caption: str = "") -> None:
    """Loss of every batch with its moving average, and test accuracy, against iterations, as PNG.

    Several runs under one label, seeds of the same settings, become their median and a band from the min to the max.

    Args:
        runs: by label, each in its own colour.
        path: of the picture; its folder is made.
        title: one line above.
        caption: what a reader must know, below.

    Raises:
        OSError: when the file cannot be made.
    """
    figure = Figure(figsize=(11, 5.0), dpi=160, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    loss, accuracy = figure.subplots(1, 2, width_ratios=(3, 2))
    _loss_panel(loss, runs)
    _accuracy_panel(accuracy, runs)
    figure.supxlabel(caption, x=0.012, ha="left", fontsize=8.5, color=MUTED)
    save_whole(figure, path)


def save_whole(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure at once, in the format that its name says; its folder is made.

    Args:
        figure: the picture.
        path: of the file.
        options: as of `Figure.savefig`.

    Raises:
        OSError: when the file cannot be made.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format=path.suffix.removeprefix("."), **options)
    write_whole(path, stream.getvalue())


def _loss_panel(axes: Axes, runs: Mapping[str, Sequence[Run]]) -> None:
    window = averaging_window(max(len(run.steps) for seeds in runs.values() for run in seeds))
    for colour, (label, seeds) in zip(COLOURS, runs.items(), strict=False):
        values = np.array([[step.loss for step in run.steps] for run in seeds])
        iterations = np.arange(1, values.shape[1] + 1)
        smooth = np.array([moving_average(row, window) for row in values])
        if len(seeds) == 1:
            axes.plot(iterations, values[0], color=colour, alpha=0.2, linewidth=0.8)
        median_and_range(axes, iterations, smooth, colour=colour, label=label)
    plain_logarithmic(axes)
    batch = "each batch, and " if all(len(seeds) == 1 for seeds in runs.values()) else ""
    axes.set_xlabel("iteration", color=MUTED)
    dress(axes, f"Training loss ({batch}mean of the last {window})")
    axes.legend(frameon=False, labelcolor=INK, fontsize=10)


def _accuracy_panel(axes: Axes, runs: Mapping[str, Sequence[Run]]) -> None:
    for colour, (label, seeds) in zip(COLOURS, runs.items(), strict=False):
        curves = [[(e.step, e.accuracy) for e in run.evaluations if e.split == "test"] for run in seeds]
        steps = np.array([step for step, _ in curves[0]])
        values = np.array([[value for _, value in curve] for curve in curves])
        median_and_range(axes, steps, values, colour=colour, label=label, marker="o")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_xlabel("iteration", color=MUTED)
    dress(axes, "Test accuracy")


def median_and_range(
    axes: Axes, x: NDArray[Any], values: NDArray[np.float64], *, colour: str, label: str, **style: Any
) -> None:
    """Draw the median over the first axis, and a band from the min to the max where there is more than one.

    A band of positive values stays positive, as a logarithmic axis needs; that of a mean and a deviation may not.

    Args:
        x: shape (points,).
        values: shape (seeds, points).
        style: of the line, as of `Axes.plot`.
    """
    line = {"linewidth": 2.2, "markersize": 4, **style}
    axes.plot(x, np.median(values, axis=0), color=colour, label=label, **line)
    if len(values) > 1:
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)


class PlainTicks(Locator):
    """Ticks of a logarithmic axis at 1, 2, 5, 10, …; evenly where these would be few, at powers of 10 where many."""

    def __call__(self) -> Sequence[float]:
        """The ticks within view."""
        if self.axis is None:
            raise RuntimeError("a locator without an axis has no view; ask tick_values")
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Those between two positive numbers."""
        low, high = sorted((vmin, vmax))
        if high < 4.0 * low:
            ticks: Sequence[float] = list(MaxNLocator(6).tick_values(low, high))
        else:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            ticks = [digit * 10.0**power for power in powers for digit in ((1, 2, 5) if len(powers) < 6 else (1,))]
        return [tick for tick in ticks if low <= tick <= high]


def plain_logarithmic(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """Make an axis logarithmic, with ticks that are plain numbers."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(PlainTicks())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def dress(axes: Axes, title: str) -> None:
    """Title at the left, a light grid and no frame."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=MUTED)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
