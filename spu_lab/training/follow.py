"""Following a run: a progress line for people, rows for a file."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from spu_lab.training.loop import Evaluation, Run, StepMetrics
from spu_lab.training.results import StepWriter

SMOOTHING = 0.95
"""Weight of the past in the loss and accuracy of the progress line."""

LABELS = {
    "dropped": "uploads dropped",
    "missed": "readings missed",
    "waited": "waited",
    "digital": "digital",
    "gradient": "by gradient",
    "lost": "times lost",
    "reconnected": "reconnected",
    "trust region": "cut by trust region",
}
"""Labels of an optimizer's counts that the progress line shows once they are not 0: those of unusual events."""


def follow(
    events: Iterable[StepMetrics | Evaluation],
    run: Run,
    *,
    label: str,
    total: int,
    console: Console,
    writer: StepWriter | None = None,
    rate: float = 0.0,
    each_evaluation: bool = True,
) -> Run:
    """Collect what happens into `run`, show it, and write it.

    A terminal shows a progress line. Anything else gets a plain line a tenth of the run, at most one a second, and none
    where only the last evaluations are shown.

    Args:
        events: of the run, as they happen.
        run: filled in place, so that it holds what there is when this is interrupted.
        label: name for people.
        total: iterations of the whole run.
        console: where the progress line and a line for each evaluation go.
        writer: of the iterations.
        rate: τ per second of a free-running device, to show staleness in milliseconds too; 0 if it has none.
        each_evaluation: whether each evaluation is shown, or only those after the last iteration.

    Returns:
        `run`.
    """
    line = Line(rate)
    with progress(console) as bar:
        plain = PlainLines(console, label, total) if each_evaluation and bar.disable else None
        task = bar.add_task(label, total=total, completed=len(run.steps), status="")
        for event in events:
            if isinstance(event, StepMetrics):
                run.steps.append(event)
                if writer is not None:
                    writer.write(event)
                status = line.add(event)
                bar.update(task, advance=1, status=status)
                if plain is not None:
                    plain.show(event.step, status)
            else:
                run.evaluations.append(event)
                if each_evaluation or event.step == total:
                    result = f"{event.split} loss {event.loss:.4f}, accuracy {event.accuracy:.2%}"
                    console.print(f"{label}: after {event.step} iterations {result}", highlight=False, soft_wrap=True)
    return run


def progress(console: Console) -> Progress:
    """Return a progress line of a label, a bar, a count, the time left and a status, which is cut where it is too long.

    It is disabled where the console is no terminal that could move it.

    From 60 columns on a label of up to 14 characters and counts of up to 10,000 leave room for the status.
    """
    label, bar = (14, 10) if console.width < 100 else (40, 24)
    columns = [
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=label)),
        BarColumn(bar_width=bar),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    ]
    moving = console.is_terminal and not console.is_dumb_terminal
    return Progress(*columns, console=console, transient=True, expand=True, disable=not moving)


class PlainLines:
    """Lines for a log: one each tenth of a run, at most one a second.

    Args:
        console: where they go.
        label: name for people.
        total: iterations of the whole run.
    """

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._console, self._label, self._total = console, label, total
        self._every = max(1, total // 10)
        self._last = time.monotonic()

    def show(self, step: int, status: str) -> None:
        """Show the status after an iteration, if a line is due."""
        now = time.monotonic()
        if step % self._every == 0 and now - self._last >= 1.0:
            self._last = now
            self._console.print(
                f"{self._label}: {step} of {self._total} iterations, {status}", highlight=False, soft_wrap=True
            )


class Line:
    """The changing part of the progress line.

    Args:
        rate: τ per second of a free-running device; 0 if it has none.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._loss = self._accuracy = self._weight = 0.0
        self._uploaded = 0

    def add(self, step: StepMetrics) -> str:
        """The line after one more iteration."""
        self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * step.loss
        self._accuracy = SMOOTHING * self._accuracy + (1 - SMOOTHING) * step.accuracy
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        self._uploaded += step.uploaded
        parts = [f"loss {self._loss / self._weight:.3f}", f"accuracy {self._accuracy / self._weight:.1%}"]
        if step.staleness is not None:
            milliseconds = f" ({1e3 * step.staleness / self._rate:.1f} ms)" if self._rate else ""
            parts += [f"staleness {step.staleness:.3g} τ{milliseconds}", f"uploaded {decimal(self._uploaded)}"]
        parts += [f"{step.counts[name]} {label}" for name, label in LABELS.items() if step.counts.get(name)]
        return ", ".join(parts)
