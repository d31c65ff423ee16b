"""One training run of a classifier: losses and accuracies by step, and how long it took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from host_client.curvature import Diverged
from spu_lab.tasks.task import Task
from spu_lab.training.loop import Split
from spu_link.errors import DeviceFault, InvalidProgram


@dataclass(frozen=True)
class Evaluated:
    """The network after a step.

    Attributes:
        step: number of steps taken.
        accuracy: fraction of the examples classified rightly.
        seconds: wall time of the steps so far, without evaluations.
    """

    step: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class ClassifierRun:
    """A run.

    Attributes:
        losses: of the batch before each step; all are finite, as JSON needs them.
        evaluations: in order of the steps.
        seconds: wall time of each step, with an emulator where there is a device.
        device_seconds: modelled time of the device for the whole run; 0 without one.
        diverged: why the run ended early; None where it did not.
    """

    losses: Sequence[float]
    evaluations: Sequence[Evaluated]
    seconds: Sequence[float]
    device_seconds: float
    diverged: str | None

    @property
    def accuracy(self) -> float:
        """Accuracy at the end; 0 for a run that diverged."""
        return 0.0 if self.diverged or not self.evaluations else self.evaluations[-1].accuracy

    def first_with(self, accuracy: float) -> Evaluated | None:
        """Return the first evaluation with at least that accuracy; None where there is none."""
        return next((each for each in self.evaluations if each.accuracy >= accuracy), None)


def geometric_steps(total: int, ratio: float = 1.1) -> list[int]:
    """Return steps from 1 to `total`, each at most `ratio` times the one before, or the next one."""
    steps = [1]
    while steps[-1] < total:
        steps.append(min(total, max(steps[-1] + 1, int(steps[-1] * ratio))))
    return steps


def even_steps(total: int, number: int) -> list[int]:
    """Return so many steps at equal distances, the last one `total`."""
    return sorted({max(1, round(total * place / number)) for place in range(1, number + 1)})


def train_classifier(
    task: Task,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    evaluate_at: Collection[int],
    split: Split,
    device_seconds: Callable[[], float] = lambda: 0.0,
) -> ClassifierRun:
    """Train, and evaluate after some steps; a run that diverges ends there.

    Args:
        task: data and loss.
        model: what is trained.
        optimizer: its optimizer.
        batch_size: examples of a step.
        seed: of the order of the examples.
        steps: how many.
        evaluate_at: numbers of the steps after which to evaluate.
        split: the examples to evaluate on.
        device_seconds: modelled time of the device so far, s.

    Raises:
        SpuError: when a device fails otherwise than by numbers beyond its range.
    """
    places, before = frozenset(evaluate_at), device_seconds()
    losses: list[float] = []
    seconds: list[float] = []
    evaluations: list[Evaluated] = []
    diverged = None
    for number, (inputs, targets) in zip(range(1, steps + 1), task.batches(batch_size, seed), strict=False):
        began = time.perf_counter()
        try:
            loss = task.criterion(model(inputs), targets)
            if not math.isfinite(value := loss.item()):
                raise Diverged(number, "loss")
            losses.append(value)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        except (FloatingPointError, DeviceFault, InvalidProgram) as error:
            diverged = str(error)
            break
        seconds.append(time.perf_counter() - began)
        if number in places:
            _, accuracy = task.evaluate(model, getattr(task, split))
            evaluations.append(Evaluated(number, accuracy, sum(seconds)))
    return ClassifierRun(losses, evaluations, seconds, device_seconds() - before, diverged)
