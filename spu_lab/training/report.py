"""Results for people: a table and a plot of a run, and parts of plots."""

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
"""Colours of curves, in their order; distinguishable in greyscale and by colour-blind readers."""

INK, MUTED, GRID = "#1f2937", "#6b7280", "#e5e7eb"

PAPER_WINDOW = 200
"""Points in the paper's moving average."""


def run_table(label: str, run: Run, title: str) -> Group:
    """Return loss, accuracy, time per iteration and bytes per upload of a run as a table, under a title."""
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("", no_wrap=True)
    table.add_column(label, justify="right", no_wrap=True)
    names = ("steps", "training loss", "test loss", "test accuracy", "time a step", "upload", "Jacobian")
    for row in zip(names, _figures(run), strict=True):
        table.add_row(*row)
    caption = (
        "Training loss: mean of the last 50 batches. Time and upload: medians over steps.\n"
        f"Jacobian: a batch's explicit float32 rows, {decimal(run.jacobian_bytes)}, against the upload."
    )
    if run.modelled_seconds:
        ms, mj = (1e3 * total / len(run.steps) for total in (run.modelled_seconds, run.modelled_joules))
        caption += f"\nA device by the timing model, {label}: {ms:.3g} ms and {mj:.3g} mJ a step."
    return Group(Text(title, style="bold"), table, Text(caption))  # a table's own title is as narrow as the table


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


def plot_run(run: Run, path: Path, *, title: str, caption: str) -> None:
    """Write the loss of every batch with its moving average, and the test accuracy, against iterations, as PNG.

    Args:
        run: with at least one iteration.
        path: of the picture; its folder is made.
        title: one line above.
        caption: what a reader must know, below.

    Raises:
        OSError: when the file cannot be made.
    """
    figure = Figure(figsize=(11, 5.0), dpi=160, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    loss, accuracy = figure.subplots(1, 2, width_ratios=(3, 2))
    losses, window = np.array([step.loss for step in run.steps]), averaging_window(len(run.steps))
    iterations = np.arange(1, len(losses) + 1)
    loss.plot(iterations, losses, color=COLOURS[0], alpha=0.2, linewidth=0.8)
    loss.plot(iterations, moving_average(losses, window), color=COLOURS[0], linewidth=2.2)
    plain_logarithmic(loss)
    dress(loss, f"Training loss (each batch, and mean of the last {window})")
    tests = [evaluation for evaluation in run.evaluations if evaluation.split == "test"]
    places, accuracies = [test.step for test in tests], [test.accuracy for test in tests]
    accuracy.plot(places, accuracies, color=COLOURS[0], linewidth=2.2, marker="o", markersize=4)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    dress(accuracy, "Test accuracy")
    for axes in (loss, accuracy):
        axes.set_xlabel("iteration", color=MUTED)
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


def legend_below_title(figure: Figure, handles: Mapping[str, Any], *, columns: int) -> None:
    """Draw the legend of a whole figure, artists by label, below its title, which ends with empty lines for it."""
    place = (0.0, 1.0 - 0.36 / figure.get_figheight())
    figure.legend(
        handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=place, ncols=columns, frameon=False
    )


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
