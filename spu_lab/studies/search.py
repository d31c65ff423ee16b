"""Search for hyperparameters with Optuna: rounds of trials that are independent jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution

from spu_lab.studies.classifier_methods import LOGARITHMIC

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


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        ranges: bounds by name; those in `LOGARITHMIC` on such a scale.
        first: values of the first trial.
    """

    ranges: Mapping[str, tuple[float, float]]
    first: Values


def search(
    spaces: Mapping[str, Space],
    evaluate: Callable[[Mapping[str, tuple[str, Values]]], Mapping[str, float]],
    *,
    rounds: int,
    trials: int,
    seed: int = 0,
) -> dict[str, list[Trial]]:
    """Try as many hyperparameters in each space, round by round, and return all trials.

    The first round is random but for its first trial; the later ones follow Optuna's tree-structured Parzen estimator.
    The same scores give the same trials.

    Args:
        spaces: by name.
        evaluate: returns the score of each trial of a round, all spaces together, by the trial's name; it is given the
            name of the space, and the values.
        rounds: how many.
        trials: of each space in a round.
        seed: of the sampler.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = {
        name: optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=trials))
        for name in spaces
    }
    done: dict[str, list[Trial]] = {name: [] for name in spaces}
    for name, study in studies.items():
        study.enqueue_trial(dict(spaces[name].first))
    for turn in range(rounds):
        asked = {
            f"{name}, trial {turn * trials + number + 1}": (name, studies[name].ask(_distributions(spaces[name])))
            for name in spaces
            for number in range(trials)
        }
        scores = evaluate({key: (name, trial.params) for key, (name, trial) in asked.items()})
        for key, (name, trial) in asked.items():
            studies[name].tell(trial, scores[key])
            done[name].append(Trial(dict(trial.params), scores[key]))
    return done


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the lowest score, the first of several."""
    return min(trials, key=lambda trial: trial.score)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {name: FloatDistribution(low, high, log=name in LOGARITHMIC) for name, (low, high) in space.ranges.items()}
