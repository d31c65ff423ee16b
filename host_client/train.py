"""The training loop: an ordinary PyTorch loop that tells what happens."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch.optim import Optimizer

from host_client.optimizers import TNGD, make_optimizer
from host_client.optimizers.base import NaturalGradient
from host_client.record import Differentiated, Event, Source, Updated
from host_client.settings import Settings
from host_client.tasks.task import Task
from spu_link.tuning import settle_process

if TYPE_CHECKING:
    from host_client.blocking import Session

Split: TypeAlias = Literal["validation", "test"]
"""Examples that are held out: to choose settings by, or to report."""


@dataclass(frozen=True)
class Step:
    """One iteration.

    Attributes:
        step: number of the iteration, from 1.
        epoch: number of the pass over the training set, from 1.
        loss: mean loss of the batch before the update.
        accuracy: share of the batch classified rightly before the update.
        time: seconds since the first iteration began, evaluations included.
        duration: seconds that this iteration took: batch, differentiation, upload, reading and update.
        uploaded: bytes that this iteration sent to the device; 0 without one.
        device_time: device time of the reading used, in τ; None without a device.
        staleness: device time from the reading used to its use, in τ; None without a device.
        counts: what has happened how often so far, as the optimizer counts it.
    """

    step: int
    epoch: int
    loss: float
    accuracy: float
    time: float
    duration: float
    uploaded: int = 0
    device_time: float | None = None
    staleness: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The network on examples it has not learnt from.

    Attributes:
        step: iterations before it.
        split: which examples.
        loss: their mean loss.
        accuracy: share of them classified rightly.
    """

    step: int
    split: Split
    loss: float
    accuracy: float


@dataclass
class Run:
    """What one training run gave.

    Attributes:
        settings: what it was made with.
        parameters: N of the network.
        outputs: d_z, outputs per example.
        steps: every iteration, in order.
        evaluations: in order.
        report: what the device counted meanwhile, see `Spu.report`; empty where it counts nothing, and where it was
            started again on the way.
        delay: median t_d that was measured, in τ, see `measure_delays`; None without a device.
    """

    settings: Settings
    parameters: int
    outputs: int
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    report: dict[str, float] = field(default_factory=dict)
    delay: float | None = None

    @property
    def seconds_per_iteration(self) -> float:
        """Median duration of an iteration."""
        return median(step.duration for step in self.steps)

    @property
    def modelled_seconds(self) -> float:
        """Time that the device would have taken by its own model, s; 0 where it reports none."""
        return sum(self.report.get(f"{part}_seconds", 0.0) for part in ("upload", "conversion", "analog", "reading"))

    @property
    def modelled_joules(self) -> float:
        """Energy likewise, J."""
        return self.report.get("joules", 0.0)

    @property
    def bytes_per_upload(self) -> float:
        """Median bytes sent in an iteration."""
        return median(step.uploaded for step in self.steps)

    @property
    def jacobian_bytes(self) -> int:
        """Bytes of the explicit float32 Jacobian of one full batch: b·d_z rows of N."""
        return self.settings.batch_size * self.outputs * self.parameters * 4

    def final(self, split: Split = "test") -> Evaluation:
        """The last evaluation on these examples."""
        return next(e for e in reversed(self.evaluations) if e.split == split)

    def training_loss(self, last: int = 50) -> float:
        """Mean loss of the last batches."""
        return fmean(step.loss for step in self.steps[-last:])


def start(task: Task, settings: Settings) -> Run:
    """An empty run for this task and these settings."""
    parameters = sum(p.numel() for p in task.build(settings.seed).parameters())
    return Run(settings, parameters, task.outputs)


def train(
    task: Task,
    settings: Settings,
    session: Session | None = None,
    *,
    evaluate_every: int | None = None,
    splits: Sequence[Split] = ("test",),
    record: Callable[[Event], None] | None = None,
    make: Callable[..., Optimizer] = make_optimizer,
) -> Iterator[Step | Evaluation]:
    """Train a fresh network, giving each iteration and each evaluation as it happens.

    Args:
        task: data, network and loss.
        settings: everything else.
        session: the device; needed for ``tngd`` only.
        evaluate_every: iterations between evaluations; by default an epoch. One comes at the end in any case.
        splits: which examples to evaluate on.
        record: told of what happens when, see `host_client.record`.
        make: makes the optimizer.

    Raises:
        SpuError: when the device fails.
        FloatingPointError: when the loss is no longer finite.
    """
    settle_process()
    model = task.build(settings.seed)
    told = _Told(record)
    name, hyperparameters = settings.optimizer, settings.hyperparameters()
    if name == "tngd":
        hyperparameters["record"] = told
    optimizer = make(name, model, task.criterion, session=session, **hyperparameters)
    per_epoch = task.batches_per_epoch(settings.batch_size)
    total = settings.total_steps(per_epoch)
    began = time.perf_counter()
    uploaded = session.uploaded_bytes if session is not None else 0
    batches = itertools.islice(task.batches(settings.batch_size, settings.seed), total)
    for number in range(1, total + 1):
        step_began, host_began = time.perf_counter(), time.monotonic()
        inputs, targets = next(batches)
        outputs = model(inputs)
        loss = task.criterion(outputs, targets)
        loss.backward()
        differentiated = time.monotonic()
        optimizer.step()
        optimizer.zero_grad()
        ended = time.perf_counter()
        told.step(optimizer, number, host_began, differentiated)
        batch_loss = loss.item()
        if not math.isfinite(batch_loss):
            raise FloatingPointError(f"the loss is {batch_loss} at iteration {number}; lower the learning rate")
        before, uploaded = uploaded, session.uploaded_bytes if session is not None else 0
        yield Step(
            step=number,
            epoch=1 + (number - 1) // per_epoch,
            loss=batch_loss,
            accuracy=(outputs.argmax(1) == targets).float().mean().item(),
            time=ended - began,
            duration=ended - step_began,
            uploaded=uploaded - before,
            device_time=told.device_time(optimizer),
            staleness=told.update.staleness if told.update is not None else None,
            counts=dict(optimizer.counts) if isinstance(optimizer, NaturalGradient) else {},
        )
        if number % (evaluate_every or per_epoch) == 0 or number == total:
            for split in splits:
                yield Evaluation(number, split, *task.evaluate(model, getattr(task, split)))


class _Told:
    """Passes events on, and remembers the last update.

    Args:
        record: where they go.
    """

    def __init__(self, record: Callable[[Event], None] | None) -> None:
        self._record = record
        self.update: Updated | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Updated):
            self.update = event
        if self._record is not None:
            self._record(event)

    def step(self, optimizer: Optimizer, number: int, began: float, differentiated: float) -> None:
        """Tell of a step, now that it is over, unless its optimizer does so itself."""
        if not isinstance(optimizer, TNGD):
            self(Differentiated(number, began, differentiated))
            source: Source = "digital" if isinstance(optimizer, NaturalGradient) else "gradient"
            self(Updated(number, differentiated, time.monotonic(), (), None, source))

    def device_time(self, optimizer: Optimizer) -> float | None:
        """That of the reading which the last update went along, in τ; None if it went along none."""
        if not isinstance(optimizer, TNGD) or self.update is None or self.update.source != "device":
            return None
        return None if optimizer.last_reading is None else optimizer.last_reading.time
