"""Methods that are compared on a classifier: runs of all seeds, and the steps and times to an accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

from spu_lab.studies.classification import ClassifierRun, Evaluated
from spu_lab.studies.classifier_methods import Method
from spu_lab.studies.step_cost import StepCost

TARGETS = (0.90, 0.95, 0.97)
"""Test accuracies to which steps and times are counted."""


@dataclass(frozen=True)
class Contest:
    """Setting in which methods are compared.

    Attributes:
        batch_size: examples of a step.
        search_steps: of a trial.
        steps: of a run that is reported; the learning rate is 0 after them.
        images: for training.
    """

    batch_size: int
    search_steps: int
    steps: int
    images: int = 10_000

    @property
    def title(self) -> str:
        """Name for people, of no other contest."""
        more = "" if self.images == 10_000 else f", {self.images:,} images"
        return f"b = {self.batch_size}{more}"


@dataclass(frozen=True)
class Entrant:
    """A method with its hyperparameters, its cost and its runs.

    Attributes:
        label: name for people.
        method: which.
        values: hyperparameters that were searched.
        cost: of a step.
        runs: of all seeds.
    """

    label: str
    method: Method
    values: Mapping[str, float]
    cost: StepCost
    runs: Sequence[ClassifierRun]

    def steps_to(self, accuracy: float) -> float:
        """Return the median over seeds of the first evaluated step with that accuracy; infinite where there is none."""
        return median(math.inf if (at := run.first_with(accuracy)) is None else at.step for run in self.runs)

    def measured_to(self, accuracy: float) -> float:
        """Return the median of the wall time to that accuracy, emulator included, s."""
        return median(math.inf if (at := run.first_with(accuracy)) is None else at.seconds for run in self.runs)

    def accuracy_within(self, seconds: float, clock: Clock) -> float:
        """Return the median accuracy at the last evaluation within some time; 0 where there is none."""
        within = [[0.0, *(e.accuracy for e in run.evaluations if clock(self, e) <= seconds)] for run in self.runs]
        return median(accuracies[-1] for accuracies in within)

    @property
    def measured(self) -> float:
        """Median wall time of a step, emulator included, s."""
        return median(value for run in self.runs for value in run.seconds)

    @property
    def final(self) -> float:
        """Median accuracy at the end."""
        return median(run.accuracy for run in self.runs)

    def describe(self) -> str:
        """Return the hyperparameters that were searched, in words."""
        names = {"lr": "η", "damping": "λ", "trust_region": "δ", "spring": "μ", "momentum": "β", "beta1": "β₁"}
        return ", ".join(f"{names[name]} = {value:.2g}" for name, value in self.values.items())

    def to_json(self) -> dict[str, Any]:
        """Return settings, costs, accuracies, and the steps to each of `TARGETS`."""
        return {
            "method": self.label,
            "optimizer": self.method.optimizer,
            "searched": dict(self.values),
            "fixed": dict(self.method.fixed),
            "host_seconds_per_step": self.cost.host,
            "modelled_device_seconds_per_step": self.cost.device,
            "modelled_device_seconds_per_step_factors": self.cost.device_factors,
            "host_seconds_to_expand_j_per_step": self.cost.expansion,
            "measured_seconds_per_step": self.measured,
            "accuracies": [run.accuracy for run in self.runs],
            "diverged": [run.diverged for run in self.runs],
            "steps_to": {
                f"{target:g}": [None if (at := run.first_with(target)) is None else at.step for run in self.runs]
                for target in TARGETS
            },
        }


Clock: TypeAlias = Callable[[Entrant, Evaluated], float]
"""The time of an evaluation, s."""

CLOCKS: dict[str, Clock] = {
    "modelled time, with the paper's arrays": lambda entrant, at: at.step * entrant.cost.seconds,
    "modelled time, with arrays of factors": lambda entrant, at: at.step * entrant.cost.seconds_factors,
    "measured time, with the emulator": lambda entrant, at: at.seconds,
}
"""Clocks by their names for people."""


def count(steps: float, limit: int) -> str:
    """Return a number of steps in words."""
    return f"{steps:g}" if steps < math.inf else f"more than {limit}"


def row(contest: Contest, entrant: Entrant) -> list[str]:
    """Return a line of the table with `COLUMNS`."""
    steps = [entrant.steps_to(target) for target in TARGETS]
    device = entrant.method.uses_device
    return [
        f"{contest.title}, {entrant.label}",
        _join(steps, "g"),
        _join((at * entrant.cost.seconds for at in steps), ".2g"),
        _join((at * entrant.cost.seconds_factors for at in steps), ".2g") if device else "",
        _join((entrant.measured_to(target) for target in TARGETS), ".2g"),
        f"{entrant.final:.1%}",
    ]


def _join(values: Iterable[float], form: str) -> str:
    return ", ".join(f"{value:{form}}" if value < math.inf else "–" for value in values)


COLUMNS = ("method", "steps", "modelled", "factors", "measured", "end")
"""Columns of the table: steps and times to each of `TARGETS`, and the accuracy at the end."""
