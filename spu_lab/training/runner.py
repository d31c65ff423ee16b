"""One run from settings to result folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.optim import Optimizer

from host_client.blocking import Session, Spu
from host_client.optimizers import make_optimizer
from host_client.record import DelayMeter, Event, RunRecord
from spu_lab.provenance import provenance
from spu_lab.result_folder import CHECKPOINT, clear, write_json
from spu_lab.tasks.task import Task
from spu_lab.training import checkpoint
from spu_lab.training.follow import follow
from spu_lab.training.loop import Run, Split, Training, start
from spu_lab.training.report import in_tau, plot_run
from spu_lab.training.results import StepWriter, device_summary, step_writer, summary
from spu_lab.training.settings import Settings
from spu_link.errors import SpuError

CHECKPOINT_SECONDS = 60.0
"""Seconds of a run from one checkpoint to the next."""

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
        evaluate_every: iterations between evaluations; by default an epoch.
        splits: what to evaluate on.
        each_evaluation: whether each evaluation is shown, or only those at the end.
        make: makes the optimizer.

    Raises:
        SpuError: when the device fails.
        Diverged: when training diverges.
    """
    result = start(task, settings)
    with ExitStack() as stack:
        session = _session(stack, settings, spu)
        writer = stack.enter_context(step_writer(csv)) if csv is not None else None
        measured = _MeasuredTraining(task, settings, session, result, make=make)
        measured.follow(
            label=label,
            console=console,
            writer=writer,
            each_evaluation=each_evaluation,
            evaluate_every=evaluate_every,
            splits=splits,
        )
    return result


def run_in(
    folder: Path,
    task: Task,
    settings: Settings,
    spu: Spu | None,
    *,
    label: str,
    console: Console,
    options: dict[str, Any],
    resume: Mapping[str, Any] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Run:
    """Train once as `run` does, and keep all of it in a folder, so that an interrupted run can go on.

    The folder holds ``steps.csv``, ``events.jsonl`` (see `host_client.record`), ``run.json`` with the run's status, and
    until the run has finished ``checkpoint.pt``: of the last full minute, or of the step at which the run was stopped
    or lost its device. Random numbers are torch's global ones, seeded with that of the settings.

    Args:
        folder: of this run alone; what an earlier run left there is removed, unless this one resumes it.
        task, settings, spu, label, console: see `run`.
        options: what the run is started with, kept in the checkpoint.
        resume: the checkpoint to go on from.
        stopped: asked after each iteration whether the run should end there.

    Returns:
        The run; it has fewer iterations than the settings say if it was stopped.

    Raises:
        SpuError: when the device fails.
        Diverged: when training diverges.
        OSError: when the folder cannot be written.
    """
    result = start(task, settings)
    header = _header(task, settings, spu)
    with ExitStack() as stack:
        session = _session(stack, settings, spu)
        if resume is None:
            clear(folder)
            torch.manual_seed(settings.seed)
        else:
            checkpoint.prepare(folder, dict(resume), result)
        done = len(result.steps)

        def report(status: str, **more: str) -> None:
            write_json(folder / "run.json", {"status": status, **more, **_content(label, result, task, spu)})

        report("running")
        try:
            record = stack.enter_context(
                RunRecord(folder, **header, **({} if resume is None else {"resumed_after": done}))
            )
            writer = stack.enter_context(step_writer(folder / checkpoint.STEPS, append=resume is not None))
            measured = _MeasuredTraining(task, settings, session, result, record=record.record)
            if resume is not None:
                measured.training.load_state_dict(resume)
            save = partial(checkpoint.save, folder, options, measured.training, result)
            measured.follow(
                label=label, console=console, writer=writer, go_on=_make_go_on(measured.measure, save, stopped)
            )
        except SpuError as error:
            if len(result.steps) > done:
                save()  # as of the last iteration: a step that fails changes nothing of it
            report("failed", reason=str(error))
            raise
        except Exception as error:
            report("failed", reason=str(error))
            raise
        except BaseException:
            report("interrupted")
            raise
        if measured.training.done < measured.training.total:
            save()
            report("interrupted")
        else:
            write_report(folder, result, task, spu, label=label)
            (folder / CHECKPOINT).unlink(missing_ok=True)
    return result


def _make_go_on(
    measure: Callable[[], None], save: Callable[[], None], stopped: Callable[[], bool]
) -> Callable[[], bool]:
    """Return a function that decides whether to go on, and saves now and then."""
    last = time.monotonic()

    def go_on() -> bool:
        nonlocal last
        if stopped():
            return False
        if time.monotonic() - last > CHECKPOINT_SECONDS:
            measure()
            save()
            last = time.monotonic()
        return True

    return go_on


def _session(stack: ExitStack, settings: Settings, spu: Spu | None) -> Session | None:
    """Open a session where the optimizer needs one."""
    if settings.optimizer != "tngd" or spu is None:
        return None
    return stack.enter_context(spu.session(ttl=SESSION_TTL))


class _MeasuredTraining:
    """A training whose run also gets the device's counts and the delays, added to those of the parts before.

    Args:
        task, settings, make: see `run`.
        session: the device; None without one.
        result: the run, with the parts before where it is resumed.
        record: also receives the events.

    Attributes:
        training: the training.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        session: Session | None,
        result: Run,
        *,
        record: Callable[[Event], None] | None = None,
        make: Callable[..., Optimizer] = make_optimizer,
    ) -> None:
        self._spu = session.spu if session is not None else None
        self._result, self._before, self._delays_before = result, dict(result.report), list(result.delays)
        self._meter = DelayMeter(record)
        self.training = Training(task, settings, session, record=self._meter, make=make)
        self._known = bool(self._before) or not result.steps

    def follow(
        self, *, label: str, console: Console, writer: StepWriter | None, each_evaluation: bool = True, **options: Any
    ) -> None:
        """Train, and measure at the end, also where training fails.

        Args:
            label, console, writer, each_evaluation: as of `spu_lab.training.follow.follow`.
            options: as of `Training.events`.
        """
        self._began = self._counts()
        try:
            follow(
                self.training.events(**options),
                self._result,
                label=label,
                total=self.training.total,
                console=console,
                writer=writer,
                rate=self._spu.rate if self._spu is not None else 0.0,
                each_evaluation=each_evaluation,
            )
        finally:
            self.measure()

    def measure(self) -> None:
        """Bring the counts and the delays of the run up to date."""
        try:
            self._result.report = self._count()
        except SpuError:
            self._result.report = {}
        self._result.delays = self._delays_before + self._meter.delays

    def _count(self) -> dict[str, float]:
        """Return the counts of the whole run; empty where a part of them is unknown."""
        (opening_then, then), (opening, now) = self._began, self._counts()
        # Of several devices, only the first one says whether it was opened again.
        fallen = any(now.get(name, 0.0) < number for name, number in then.items())
        if not (now and self._known) or opening != opening_then or fallen:
            return {}
        names = now | self._before
        return {name: now.get(name, 0.0) - then.get(name, 0.0) + self._before.get(name, 0.0) for name in names}

    def _counts(self) -> tuple[tuple[int, int], dict[str, float]]:
        """Return when the driver was opened, as epoch and number of restarts, and its counts since then."""
        if self._spu is None:
            return (0, 0), {}
        info = self._spu.info
        return (info.epoch, info.restarts), self._spu.report()


def _header(task: Task, settings: Settings, spu: Spu | None) -> dict[str, Any]:
    """Return the settings, versions, machine and device of a run."""
    return {**provenance(), "task": _task(task), "settings": settings.model_dump(), "device": _device(spu)}


def _task(task: Task) -> dict[str, Any]:
    return {"name": task.name, "train_size": len(task.train), "test_size": len(task.test)}


def _device(spu: Spu | None) -> dict[str, Any] | None:
    if spu is None:
        return None
    embedding = "direct" if spu.embedding is None else spu.embedding.name
    return {"address": spu.address, "embedding": embedding, **device_summary(spu.at_connect)}


def write_report(folder: Path, run: Run, task: Task, spu: Spu | None, *, label: str) -> None:
    """Write ``run.png``, which shows the run, and then ``run.json``, all that is needed to judge and repeat it.

    Raises:
        OSError: when the folder cannot be written.
    """
    caption = f"{label}: {run.settings.describe()}{_measured_delay(run)}"
    plot_run(run, folder / "run.png", title=f"{task.name} with {label}", caption=caption)
    write_json(folder / "run.json", {"status": "finished", **_content(label, run, task, spu)})


def _measured_delay(run: Run) -> str:
    return f", measured t_d = {in_tau(run.delay)} (median)" if run.delay is not None else ""


def _content(label: str, run: Run, task: Task, spu: Spu | None) -> dict[str, Any]:
    """Return all that a reader needs to judge and repeat a run."""
    return {**provenance(), "task": _task(task), "device": _device(spu), "runs": {label: summary(run)}}
