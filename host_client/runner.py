"""One run from settings to result folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.optim import Optimizer

from host_client.blocking import Spu
from host_client.follow import follow
from host_client.optimizers import make_optimizer
from host_client.provenance import provenance
from host_client.record import DelayMeter, RunRecord
from host_client.report import in_tau, plot_runs
from host_client.results import device_summary, step_writer, summary, write_json
from host_client.settings import Settings
from host_client.tasks.task import Task
from host_client.train import Run, Split, start, train
from spu_link.errors import SpuError

SESSION_TTL = 30.0
"""Seconds after which the device is free again when this process is killed. Shorter stalls of a machine do no harm."""


def run(
    task: Task,
    settings: Settings,
    spu: Spu | None,
    *,
    label: str,
    console: Console,
    csv: Path | None = None,
    record_in: Path | None = None,
    evaluate_every: int | None = None,
    splits: Sequence[Split] = ("test",),
    each_evaluation: bool = True,
    make: Callable[..., Optimizer] = make_optimizer,
) -> Run:
    """Train once, with a session on the device where the optimizer needs one.

    Args:
        task: data, network and loss.
        settings: everything that determines the run.
        spu: the device; not needed by digital optimizers.
        label: name for people.
        console: where progress is shown.
        csv: file for the iterations, written as they happen.
        record_in: folder for the record of what happened when, see `host_client.record`.
        evaluate_every: iterations between evaluations; by default an epoch.
        splits: what to evaluate on.
        each_evaluation: whether each evaluation is told, or only those at the end.
        make: makes the optimizer.

    Raises:
        SpuError: when the device fails.
        FloatingPointError: when training diverges.
    """
    with ExitStack() as stack:
        events = (
            stack.enter_context(RunRecord(record_in, **_header(task, settings, spu))) if record_in is not None else None
        )
        session, rate = None, 0.0
        if settings.optimizer == "tngd" and spu is not None:
            session, rate = stack.enter_context(spu.session(ttl=SESSION_TTL)), spu.info.rate
        writer = stack.enter_context(step_writer(csv)) if csv is not None else None
        delays = DelayMeter(events.record if events is not None else None)
        tally = _Tally(spu) if session is not None and spu is not None else None
        result = follow(
            train(
                task,
                settings,
                session,
                evaluate_every=evaluate_every,
                splits=splits,
                record=delays,
                make=make,
            ),
            start(task, settings),
            label=label,
            total=settings.total_steps(task.batches_per_epoch(settings.batch_size)),
            console=console,
            writer=writer,
            rate=rate,
            each_evaluation=each_evaluation,
        )
        result.delay = delays.delay
        if tally is not None:
            # The run is made, also where the device has been lost on the way and cannot tell any more.
            with suppress(SpuError):
                result.report = tally.counted()
        return result


class _Tally:
    """What a device counts from now on.

    Args:
        spu: the device.
    """

    def __init__(self, spu: Spu) -> None:
        self._spu = spu
        self._opened, self._before = self._opening(), spu.report()

    def counted(self) -> dict[str, float]:
        """What it has counted by now; nothing if its driver was opened again and has counted from zero.

        Raises:
            SpuError: when it cannot be asked.
        """
        opened, now = self._opening(), self._spu.report()
        fallen = any(now.get(name, 0.0) < number for name, number in self._before.items())  # of another one beside it
        if opened != self._opened or fallen:
            return {}
        return {name: number - self._before.get(name, 0.0) for name, number in now.items()}

    def _opening(self) -> tuple[int, int]:
        info = self._spu.info
        return info.epoch, info.restarts


def _header(task: Task, settings: Settings, spu: Spu | None) -> dict[str, Any]:
    """What a run was made with and where."""
    return {**provenance(), "task": _task(task), "settings": settings.model_dump(), "device": _device(spu)}


def _task(task: Task) -> dict[str, Any]:
    return {"name": task.name, "train_size": len(task.train), "test_size": len(task.test)}


def _device(spu: Spu | None) -> dict[str, Any] | None:
    if spu is None:
        return None
    embedding = "direct" if spu.embedding is None else spu.embedding.name
    return {"address": spu.address, "embedding": embedding, **device_summary(spu.at_connect)}


def write_report(
    folder: Path, name: str, runs: Mapping[str, Run], task: Task, spu: Spu | None, *, title: str, caption: str = ""
) -> None:
    """Write ``NAME.json`` with all that a reader needs to judge and repeat the runs, and ``NAME.png`` that shows them.

    Raises:
        OSError: when the folder cannot be written.
    """
    content = {
        **provenance(),
        "task": _task(task),
        "device": _device(spu),
        "runs": {label: summary(run) for label, run in runs.items()},
    }
    write_json(folder / f"{name}.json", content)
    settings = [f"{label}: {run.settings.describe()}{_measured(run)}" for label, run in runs.items()]
    one_each = {label: [run] for label, run in runs.items()}
    plot_runs(one_each, folder / f"{name}.png", title=title, caption="\n".join([*settings, caption]).strip())


def _measured(run: Run) -> str:
    return f", measured t_d = {in_tau(run.delay)} (median)" if run.delay is not None else ""
