"""Training runs that differ in one property, over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console

from host_client.blocking import Spu, connect
from host_client.optimizers import make_optimizer
from spu_lab.studies.paired import Paired, compare
from spu_lab.tasks.task import Task
from spu_lab.training.loop import Run, Split
from spu_lab.training.runner import run as run_once
from spu_lab.training.settings import Settings
from spu_link.errors import DeviceFault, InvalidProgram, SpuError

OVERFLOW = ("OverflowError", "finite")
"""Said by a device whose state has grown beyond all numbers, and of a program whose values have."""


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
    console: Console,
    spu: Spu | None = None,
    **options: Any,
) -> Iterator[ArmResult]:
    """Run every arm with every seed, each on a device of its own, on a stepped clock; gives each arm when it is done.

    The seed is that of the network, the batches, labels that are drawn and the device, so that arms differ in nothing
    but their property. With `spu` all runs are on this device. `options` are those of `spu_lab.training.runner.run`.

    Raises:
        SpuError: when a device cannot be opened, or fails otherwise than by numbers that have grown beyond all bounds.
    """
    total = len(arms) * len(seeds)
    for number, arm in enumerate(arms):
        runs = []
        for place, seed in enumerate(seeds):
            label = f"{number * len(seeds) + place + 1}/{total}: {arm.label}, seed {seed}"
            settings = Settings.model_validate({**common, **arm.settings, "seed": seed})
            runs.append(_run(task, arm, settings, spu, label=label, console=console, **options))
        yield ArmResult(arm, tuple(runs))


def _run(
    task: Task, arm: Arm, settings: Settings, spu: Spu | None, *, label: str, console: Console, **options: Any
) -> Run | None:
    options = {"label": label, "console": console, "each_evaluation": False, "make": arm.make, **options}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(settings.seed)  # of labels that are drawn
        if spu is None and arm.device is not None:
            device = {"driver": "analog", "clock": "stepped", "seed": settings.seed, **arm.device}
            spu = stack.enter_context(connect("inproc:", **device))
        try:
            return run_once(task, settings, spu, **options)
        except (FloatingPointError, DeviceFault, InvalidProgram) as error:
            if isinstance(error, SpuError) and not any(said in error.message for said in OVERFLOW):
                raise
            console.print(f"{label}: diverged, {error}", highlight=False)
            return None
