"""Search for hyperparameters with Optuna: rounds of trials that are independent jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution

from spu_lab.studies.classifier_methods import LOGARITHMIC, Method

Values = Mapping[str, float]
"""Hyperparameters by name."""


@dataclass(frozen=True)
class Trial:
    """Hyperparameters that were tried.

    Attributes:
        values: by name.
        score: the lower, the better.
    """

    values: Values
    score: float


def search(
    methods: Mapping[str, Method],
    evaluate: Callable[[Mapping[str, tuple[str, Values]]], Mapping[str, float]],
    *,
    rounds: int,
    trials: int,
    seed: int,
) -> dict[str, list[Trial]]:
    """Try as many hyperparameters of each method, round by round, and return all trials by the method's name.

    The first round is random but for its first trial; the later ones follow Optuna's tree-structured Parzen estimator.
    The same scores give the same trials.

    Args:
        methods: by name; hyperparameters in `LOGARITHMIC` are searched on such a scale.
        evaluate: returns the score of each trial of a round, of all methods together, by the trial's name; its argument
            has the name of the method and the values.
        rounds: how many.
        trials: of each method in a round.
        seed: of the sampler.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = {
        name: optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=trials))
        for name in methods
    }
    done: dict[str, list[Trial]] = {name: [] for name in methods}
    for name, study in studies.items():
        study.enqueue_trial(dict(methods[name].first))
    for turn in range(rounds):
        pending = {
            f"{name}, trial {turn * trials + number + 1}": (name, studies[name].ask(_distributions(method)))
            for name, method in methods.items()
            for number in range(trials)
        }
        scores = evaluate({key: (name, trial.params) for key, (name, trial) in pending.items()})
        for key, (name, trial) in pending.items():
            studies[name].tell(trial, scores[key])
            done[name].append(Trial(dict(trial.params), scores[key]))
    return done


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the lowest score, the first of several."""
    return min(trials, key=lambda trial: trial.score)


def _distributions(method: Method) -> dict[str, BaseDistribution]:
    return {name: FloatDistribution(low, high, log=name in LOGARITHMIC) for name, (low, high) in method.ranges.items()}
