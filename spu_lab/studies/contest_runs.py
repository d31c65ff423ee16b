"""The runs of a comparison on a classifier, as jobs: the search, the runs of all seeds, and the costs of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import torch
from rich.console import Console

from spu_lab.studies.classification import ClassifierRun, even_steps, train_classifier
from spu_lab.studies.classifier_methods import Method, make_classifier_optimizer
from spu_lab.studies.contest import Contest, Entrant
from spu_lab.studies.devices import modelled_seconds, open_device
from spu_lab.studies.jobs import work_off
from spu_lab.studies.search import Trial, Values, search
from spu_lab.studies.step_cost import BOARD, StepCost, measure_step_cost
from spu_lab.tasks.task import Task
from spu_lab.training.loop import Split

EVALUATIONS = 8
"""Evaluations on validation images in a trial, at equal distances."""

Load: TypeAlias = Callable[[int, bool], Task]
"""Returns a task with so many training examples, of inputs as they are or of mean 0 and deviation 1."""


@dataclass(frozen=True)
class Candidate:
    """A method with hyperparameters, to be run with all seeds.

    Attributes:
        label: name for people, of no other candidate of a contest.
        method: which.
        values: hyperparameters that were searched.
        contest: batch size, steps and images.
        evaluate_at: steps after which it is evaluated.
        decay: whether the learning rate falls to 0.
        standard: whether inputs have mean 0 and deviation 1.
    """

    label: str
    method: Method
    values: Values
    contest: Contest
    evaluate_at: Sequence[int]
    decay: bool = True
    standard: bool = True

    @property
    def name(self) -> str:
        """Name of its jobs."""
        kind = "" if self.decay else "paper, "
        return f"{kind}{self.contest.title}, {self.label}"


@dataclass(frozen=True)
class Workshop:
    """Runner of the jobs.

    Attributes:
        load: returns the task.
        spu: None for a daemon of each run, or ``"inproc:"``.
        out: the experiment's folder.
        console: where progress is shown.
    """

    load: Load
    spu: str | None
    out: Path
    console: Console

    def search(
        self, contests: Sequence[Contest], methods: Sequence[Method], *, rounds: int, trials: int, seed: int
    ) -> dict[tuple[Contest, str], list[Trial]]:
        """Search hyperparameters of all methods for all contests, by one seed; return all trials by contest and label.

        A trial's score is that of `score`, of `EVALUATIONS` on validation examples.
        """
        places = {f"{c.title}, {method.label}": (c, method) for c in contests for method in methods}

        def evaluate(pending: Mapping[str, tuple[str, Values]]) -> dict[str, float]:
            jobs = {}
            for name, (place, values) in pending.items():
                contest, method = places[place]
                short = replace(contest, steps=contest.search_steps)
                at = even_steps(short.steps, EVALUATIONS)
                jobs[name] = _job(Candidate(name, method, values, short, at), seed, "validation")
            return {name: score(result) for name, result in self._train(jobs).items()}

        searched = {place: method for place, (_, method) in places.items()}
        done = search(searched, evaluate, rounds=rounds, trials=trials, seed=seed)
        return {(contest, method.label): done[place] for place, (contest, method) in places.items()}

    def run(self, candidates: Sequence[Candidate], seeds: Sequence[int], *, cost_steps: int) -> list[Entrant]:
        """Run candidates with all seeds, evaluated on test examples, and measure the costs of their steps alone."""
        jobs = {f"{each.name}, seed {seed}": _job(each, seed, "test") for each in candidates for seed in seeds}
        runs = self._train(jobs)
        measurements = {
            f"{each.name}, cost": {
                "method": each.method,
                "values": dict(each.values),
                "batch_size": each.contest.batch_size,
                "steps": cost_steps,
            }
            for each in candidates
        }
        work = partial(measure_step_cost, partial(self.load, 10_000, True))
        costs = work_off(work, measurements, self.out, self.console, kind=StepCost, at_once=1)
        return [
            Entrant(
                each.label,
                each.method,
                each.values,
                costs[f"{each.name}, cost"],
                [runs[f"{each.name}, seed {seed}"] for seed in seeds],
            )
            for each in candidates
        ]

    def _train(self, jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, ClassifierRun]:
        return work_off(partial(_train, self.load, self.spu), jobs, self.out, self.console, kind=ClassifierRun)


def score(result: ClassifierRun) -> float:
    """Return the mean of log₁₀ of the errors at the evaluations, the lower the better; 0 for a run that diverged."""
    if result.diverged is not None:
        return 0.0
    return fmean(math.log10(max(1.0 - at.accuracy, 1e-4)) for at in result.evaluations)


def _job(candidate: Candidate, seed: int, split: Split) -> dict[str, Any]:
    return {"candidate": candidate, "seed": seed, "split": split}


def _train(load: Load, spu: str | None, candidate: Candidate, seed: int, split: Split) -> ClassifierRun:
    """Train once; the seed is that of network, order of the examples, drawn labels and the device."""
    contest, method = candidate.contest, candidate.method
    task = load(contest.images, candidate.standard)
    model = task.build(seed)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(seed)
        session, device_seconds = None, None
        if method.uses_device:
            device = stack.enter_context(open_device(spu, seed=seed, driver="analog", driver_option=BOARD))
            session, device_seconds = stack.enter_context(device.session(ttl=60.0)), partial(modelled_seconds, device)
        decay_steps = contest.steps if candidate.decay else None
        return train_classifier(
            task,
            model,
            make_classifier_optimizer(
                method, candidate.values, model, task.criterion, session=session, decay_steps=decay_steps
            ),
            batch_size=contest.batch_size,
            seed=seed,
            steps=contest.steps,
            evaluate_at=candidate.evaluate_at,
            split=split,
            device_seconds=device_seconds or float,
        )
