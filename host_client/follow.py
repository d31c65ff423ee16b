"""Following a run: a progress line for people, rows for a file."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from host_client.results import StepWriter
from host_client.train import Evaluation, Run, Step

SMOOTHING = 0.95
"""Weight of the past in the loss and accuracy of the progress line."""

TOLD = {
    "dropped": "uploads dropped",
    "missed": "readings missed",
    "waited": "waited",
    "digital": "digital",
    "gradient": "by gradient",
    "lost": "times lost",
    "reconnected": "reconnected",
    "trust region": "cut by trust region",
}
"""Which of an optimizer's counts the progress line tells, once they are not 0, and how: what is out of the ordinary."""


def follow(
    events: Iterable[Step | Evaluation],
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

    Args:
        events: of the run, as they happen.
        run: filled in place, so that it holds what there is when this is interrupted.
        label: name for people.
        total: iterations to come.
        console: where the progress line and a line for each evaluation go.
        writer: of the iterations.
        rate: τ per second of a free-running device, to tell staleness in milliseconds too; 0 if it has none.
        each_evaluation: whether each evaluation is told, or only those after the last iteration.

    Returns:
        `run`.
    """
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[status]}"),
    ]
    line = Line(rate)
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(label, total=total, status="")
        for event in events:
            if isinstance(event, Step):
                run.steps.append(event)
                if writer is not None:
                    writer.write(event)
                progress.update(bar, advance=1, status=line.add(event))
            else:
                run.evaluations.append(event)
                if each_evaluation or event.step == total:
                    told = f"{event.split} loss {event.loss:.4f}, accuracy {event.accuracy:.2%}"
                    console.print(f"{label}: after {event.step} iterations {told}", highlight=False, soft_wrap=True)
    return run


class Line:
    """The changing part of the progress line.

    Args:
        rate: τ per second of a free-running device; 0 if it has none.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._loss = self._accuracy = self._weight = 0.0
        self._uploaded = 0

    def add(self, step: Step) -> str:
        """The line after one more iteration."""
        self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * step.loss
        self._accuracy = SMOOTHING * self._accuracy + (1 - SMOOTHING) * step.accuracy
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        self._uploaded += step.uploaded
        parts = [f"loss {self._loss / self._weight:.3f}", f"accuracy {self._accuracy / self._weight:.1%}"]
        if step.staleness is not None:
            milliseconds = f" ({1e3 * step.staleness / self._rate:.1f} ms)" if self._rate else ""
            parts += [f"staleness {step.staleness:.3g} τ{milliseconds}", f"uploaded {decimal(self._uploaded)}"]
        parts += [f"{step.counts[what]} {said}" for what, said in TOLD.items() if step.counts.get(what)]
        return ", ".join(parts)
