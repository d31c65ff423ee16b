"""One run from settings to result folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.optim import Optimizer

from host_client import checkpoint
from host_client.blocking import Session, Spu
from host_client.follow import follow
from host_client.optimizers import make_optimizer
from host_client.provenance import provenance
from host_client.record import DelayMeter, RunRecord
from host_client.report import in_tau, plot_runs
from host_client.result_folder import CHECKPOINT, clear, write_json
from host_client.results import device_summary, step_writer, summary
from host_client.settings import Settings
from host_client.tasks.task import Task
from host_client.train import Run, Split, Training, start
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
    with ExitStack() as stack:
        session, rate = _session(stack, settings, spu)
        writer = stack.enter_context(step_writer(csv)) if csv is not None else None
        delays = DelayMeter()
        training = Training(task, settings, session, record=delays, make=make)
        result = start(task, settings)
        with _counted(spu if session is not None else None, result):
            follow(
                training.events(evaluate_every=evaluate_every, splits=splits),
                result,
                label=label,
                total=training.total,
                console=console,
                writer=writer,
                rate=rate,
                each_evaluation=each_evaluation,
            )
        result.delay = delays.delay
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
        session, rate = _session(stack, settings, spu)
        if resume is None:
            clear(folder)
            torch.manual_seed(settings.seed)
        else:
            checkpoint.prepare(folder, dict(resume), result)
        done = len(result.steps)

        def report(status: str, **more: str) -> None:
            write_json(folder / "run.json", {"status": status, **more, **_content({label: result}, task, spu)})

        report("running")
        try:
            record = stack.enter_context(
                RunRecord(folder, **header, **({} if resume is None else {"resumed_after": done}))
            )
            writer = stack.enter_context(step_writer(folder / checkpoint.STEPS, append=resume is not None))
            delays = DelayMeter(record.record)
            training = Training(task, settings, session, record=delays)
            if resume is not None:
                training.load_state_dict(resume)
            save = partial(checkpoint.save, folder, options, training, result)
            with _counted(spu if session is not None else None, result):
                follow(
                    training.events(go_on=_keeping(save, stopped)),
                    result,
                    label=label,
                    total=training.total,
                    console=console,
                    writer=writer,
                    rate=rate,
                )
        except SpuError as error:
            if len(result.steps) > done:
                save()  # a step that fails leaves everything as it was before
            report("failed", reason=str(error))
            raise
        except Exception as error:
            report("failed", reason=str(error))
            raise
        except BaseException:
            report("interrupted")
            raise
        result.delay = delays.delay
        if training.done < training.total:
            save()
            report("interrupted")
        else:
            write_report(folder, "run", {label: result}, task, spu, title=f"{task.name} with {label}")
            (folder / CHECKPOINT).unlink(missing_ok=True)
    return result


def _keeping(save: Callable[[], None], stopped: Callable[[], bool]) -> Callable[[], bool]:
    """Return what saves now and then, and says whether to go on."""
    last = time.monotonic()

    def go_on() -> bool:
        nonlocal last
        if stopped():
            return False
        if time.monotonic() - last > CHECKPOINT_SECONDS:
            save()
            last = time.monotonic()
        return True

    return go_on


def _session(stack: ExitStack, settings: Settings, spu: Spu | None) -> tuple[Session | None, float]:
    """Open a session where the optimizer needs one; with it the rate of the device's clock."""
    if settings.optimizer != "tngd" or spu is None:
        return None, 0.0
    return stack.enter_context(spu.session(ttl=SESSION_TTL)), spu.info.rate


@contextmanager
def _counted(spu: Spu | None, result: Run) -> Iterator[None]:
    """Put what a device counts meanwhile into the report of a run."""
    tally = _Tally(spu) if spu is not None else None
    yield
    if tally is not None:
        # The run is made, also where the device has been lost on the way and cannot tell any more.
        with suppress(SpuError):
            result.report = tally.counted()


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
    """Write ``NAME.png``, which shows the runs, and then ``NAME.json``, all that is needed to judge and repeat them.

    Raises:
        OSError: when the folder cannot be written.
    """
    settings = [f"{label}: {run.settings.describe()}{_measured(run)}" for label, run in runs.items()]
    one_each = {label: [run] for label, run in runs.items()}
    plot_runs(one_each, folder / f"{name}.png", title=title, caption="\n".join([*settings, caption]).strip())
    write_json(folder / f"{name}.json", {"status": "finished", **_content(runs, task, spu)})


def _measured(run: Run) -> str:
    return f", measured t_d = {in_tau(run.delay)} (median)" if run.delay is not None else ""


def _content(runs: Mapping[str, Run], task: Task, spu: Spu | None) -> dict[str, Any]:
    """Return all that a reader needs to judge and repeat some runs."""
    summaries = {label: summary(run) for label, run in runs.items()}
    return {**provenance(), "task": _task(task), "device": _device(spu), "runs": summaries}
