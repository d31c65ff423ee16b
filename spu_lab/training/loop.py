"""The training loop: an ordinary PyTorch loop that reports what happens."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from host_client.curvature import Diverged
from host_client.optimizers import TNGD, make_optimizer
from host_client.optimizers.base import NaturalGradient
from host_client.record import Differentiated, Event, Source, Updated
from spu_lab.tasks.task import Task
from spu_lab.training.settings import Settings
from spu_link.tuning import settle_process

if TYPE_CHECKING:
    from host_client.blocking import Session

Split: TypeAlias = Literal["validation", "test"]
"""Examples that are held out: to choose settings by, or to report."""


@dataclass(frozen=True)
class StepMetrics:
    """One iteration.

    Attributes:
        step: number of the iteration, from 1.
        epoch: number of the pass over the training set, from 1.
        loss: mean loss of the batch before the update.
        accuracy: fraction of the batch classified rightly before the update.
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
        accuracy: fraction of them classified rightly.
        scores: further figures, of the test set alone, see `Task.score`.
    """

    step: int
    split: Split
    loss: float
    accuracy: float
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """Result of one training run.

    Attributes:
        settings: those that it was made with.
        parameters: N, those of the network that are trained.
        outputs: d_z, outputs per example.
        steps: every iteration, in order.
        evaluations: in order.
        report: counts of the device over the whole run, see `Spu.report`; empty where it counts nothing, and where a
            part of them is unknown, since the device was restarted or lost.
        delays: each t_d that was measured, in τ, see `measure_delays`.
    """

    settings: Settings
    parameters: int
    outputs: int
    steps: list[StepMetrics] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    report: dict[str, float] = field(default_factory=dict)
    delays: list[float] = field(default_factory=list)

    @property
    def delay(self) -> float | None:
        """Median of the measured t_d, in τ; None where none was measured."""
        return median(self.delays) if self.delays else None

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
    parameters = sum(p.numel() for p in task.build(settings.seed).parameters() if p.requires_grad)
    return Run(settings, parameters, task.outputs)


class Training:
    """A network and its optimizer on the way through a task.

    Args:
        task: data, network and loss.
        settings: everything else.
        session: the device; needed for ``tngd`` only.
        record: called with what happens when, see `host_client.record`.
        make: makes the optimizer.

    Attributes:
        total: iterations of the whole run.
        done: iterations that have been made.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        session: Session | None = None,
        *,
        record: Callable[[Event], None] | None = None,
        make: Callable[..., Optimizer] = make_optimizer,
    ) -> None:
        self._task, self._settings, self._session = task, settings, session
        self._model = task.build(settings.seed)
        self._observer = _Observer(record)
        hyperparameters = settings.hyperparameters()
        if settings.optimizer == "tngd":
            hyperparameters["record"] = self._observer
        self._optimizer = make(settings.optimizer, self._model, task.criterion, session=session, **hyperparameters)
        self._per_epoch = task.batches_per_epoch(settings.batch_size)
        self.total = settings.total_steps(self._per_epoch)
        self.done, self._seconds = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs: network, optimizer with its device, iterations, random numbers."""
        return {
            "done": self.done,
            "seconds": self._seconds,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a training of the same task with the same settings was."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.done, self._seconds = state["done"], state["seconds"]

    def events(
        self,
        *,
        evaluate_every: int | None = None,
        splits: Sequence[Split] = ("test",),
        go_on: Callable[[], bool] = lambda: True,
    ) -> Iterator[StepMetrics | Evaluation]:
        """Make the iterations that are left, giving each of them and each evaluation as it happens.

        Args:
            evaluate_every: iterations between evaluations; by default an epoch. One comes at the end in any case.
            splits: which examples to evaluate on.
            go_on: asked after each iteration and its evaluations; the run ends early when it says no.

        Raises:
            SpuError: when the device fails.
            Diverged: when a tensor of a step, or the loss, is no longer finite.
        """
        settle_process()
        task, settings, session = self._task, self._settings, self._session
        began = time.perf_counter() - self._seconds
        uploaded = session.uploaded_bytes if session is not None else 0
        batches = itertools.islice(task.batches(settings.batch_size, settings.seed), self.done, self.total)
        for number, (inputs, targets) in enumerate(batches, self.done + 1):
            step_began = time.perf_counter()
            outputs, loss = self._step(number, inputs, targets)
            ended = time.perf_counter()
            before, uploaded = uploaded, session.uploaded_bytes if session is not None else 0
            self.done, self._seconds = number, ended - began
            yield StepMetrics(
                step=number,
                epoch=1 + (number - 1) // self._per_epoch,
                loss=loss,
                accuracy=(outputs.argmax(1) == targets).float().mean().item(),
                time=self._seconds,
                duration=ended - step_began,
                uploaded=uploaded - before,
                device_time=self._observer.device_time(self._optimizer),
                staleness=self._observer.update.staleness if self._observer.update is not None else None,
                counts=dict(self._optimizer.counts) if isinstance(self._optimizer, NaturalGradient) else {},
            )
            if number % (evaluate_every or self._per_epoch) == 0 or number == self.total:
                for split in splits:
                    yield self._evaluate(number, split)
            if not go_on():
                return

    def _evaluate(self, number: int, split: Split) -> Evaluation:
        loss, accuracy = self._task.evaluate(self._model, getattr(self._task, split))
        scores = self._task.test_scores(self._model) if split == "test" else {}
        return Evaluation(number, split, loss, accuracy, scores)

    def _step(self, number: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """Make an iteration; return the outputs of the batch and its loss before the update."""
        began = time.monotonic()
        outputs = self._model(inputs)
        loss = self._task.criterion(outputs, targets)
        batch_loss: float = loss.item()
        if not math.isfinite(batch_loss):
            raise Diverged(number, "loss")
        loss.backward()
        differentiated = time.monotonic()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._observer.step(self._optimizer, number, began, differentiated)
        return outputs, batch_loss


class _Observer:
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
        """Record a step, now that it is over, unless its optimizer does so itself."""
        if not isinstance(optimizer, TNGD):
            self(Differentiated(number, began, differentiated))
            source: Source = "digital" if isinstance(optimizer, NaturalGradient) else "gradient"
            self(Updated(number, differentiated, time.monotonic(), (), None, source))

    def device_time(self, optimizer: Optimizer) -> float | None:
        """Return the device time of the reading that the last update used, in τ; None if it used none."""
        if not isinstance(optimizer, TNGD) or self.update is None or self.update.source != "device":
            return None
        return None if optimizer.last_reading is None else optimizer.last_reading.time
