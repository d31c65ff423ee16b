"""Training runs that differ in one property, over seeds."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from host_client.optimizers import make_optimizer
from spu_lab.studies.devices import open_device
from spu_lab.studies.jobs import work_off
from spu_lab.studies.paired import Paired, compare
from spu_lab.tasks.task import Task
from spu_lab.training.loop import Run, Split
from spu_lab.training.runner import run as run_once
from spu_lab.training.settings import Settings
from spu_link.errors import DeviceFault, InvalidProgram, SpuError

OVERFLOW = ("OverflowError", "finite")
"""Words in the errors of a device whose state, and of a program whose values, are no longer finite."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        label: name for people, of no other arm of the study.
        value: what is varied, as the abscissa.
        settings: of the run, beyond those that all arms share.
        device: arguments of `connect` for a device in this process; None trains without one.
        make: makes the optimizer.
    """

    label: str
    value: float = math.nan
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: Mapping[str, Any] | None = field(default_factory=dict)
    make: Callable[..., torch.optim.Optimizer] = make_optimizer


@dataclass(frozen=True)
class Panel:
    """Arms that vary one property, and the arm that they are compared with.

    Attributes:
        varied: the property, as the label of the abscissa.
        reference: without the fault, or exact.
        arms: the others.
    """

    varied: str
    reference: Arm
    arms: Sequence[Arm]


@dataclass(frozen=True)
class ArmResult:
    """An arm's runs by seed; a run that diverged is None."""

    arm: Arm
    runs: tuple[Run | None, ...]

    @property
    def finished(self) -> list[Run]:
        """The runs that did not diverge."""
        return [run for run in self.runs if run is not None]

    def finals(self, name: str, split: Split = "test") -> list[float]:
        """Return ``loss`` or ``accuracy`` at the end, of the runs that did not diverge."""
        return [getattr(run.final(split), name) for run in self.finished]

    def against(self, reference: ArmResult) -> Paired | None:
        """Test losses less those of the reference with the same seed; only where neither diverged."""
        both = [(a, b) for a, b in zip(self.runs, reference.runs, strict=True) if a is not None and b is not None]
        return compare([mine.final("test").loss - theirs.final("test").loss for mine, theirs in both])


def sweep(
    task: Task,
    arms: Sequence[Arm],
    common: Mapping[str, Any],
    seeds: Sequence[int],
    out: Path,
    console: Console,
    *,
    address: str | None = None,
    **options: Any,
) -> list[ArmResult]:
    """Run every arm with every seed, each on a device of its own, with a stepped clock; see `work_off`.

    The seed is that of the network, the batches, labels that are drawn and the device, so that arms differ in nothing
    but their property. `address` is that of `open_device`; `options` are those of `spu_lab.training.runner.run`.

    Raises:
        SpuError: when a device cannot be opened, or fails otherwise than by numbers that have grown beyond all bounds.
    """
    known = {arm.label: arm for arm in arms}
    jobs = {
        f"{arm.label}, seed {seed}": {
            "task": f"{task.name}, data {_checksum(task):08x}",
            "label": arm.label,
            "settings": Settings.model_validate({**common, **arm.settings, "seed": seed}),
            "device": arm.device,
            **options,
        }
        for arm in arms
        for seed in seeds
    }
    at_once = 1 if address not in (None, "inproc:") else None  # one device serves one run at a time
    results = work_off(partial(_run, task, known, address), jobs, out, console, kind=Run | None, at_once=at_once)
    return [ArmResult(arm, tuple(results[f"{arm.label}, seed {seed}"] for seed in seeds)) for arm in arms]


def _checksum(task: Task) -> int:
    """Return a number that differs for a task on other data."""
    return zlib.crc32(b"".join(part.inputs.numpy().tobytes() for part in (task.train, task.test)))


def _run(
    data: Task,
    arms: Mapping[str, Arm],
    address: str | None,
    task: str,
    label: str,
    settings: Settings,
    device: Mapping[str, Any] | None,
    **options: Any,
) -> Run | None:
    """Train once; return None where that diverges."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(settings.seed)  # of labels that are drawn
        spu = None
        if device is not None:
            given = {"driver": "analog", "seed": settings.seed, **device}
            spu = stack.enter_context(open_device(address, **given))
        nowhere = Console(file=StringIO())
        try:
            return run_once(data, settings, spu, label=label, console=nowhere, make=arms[label].make, **options)
        except (FloatingPointError, DeviceFault, InvalidProgram) as error:
            if isinstance(error, SpuError) and not any(said in error.message for said in OVERFLOW):
                raise
            return None
