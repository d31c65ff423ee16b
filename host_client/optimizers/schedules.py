"""Hyperparameters that change from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from host_client.optimizers.ranges import Ranges, check

Schedule: TypeAlias = Callable[[int], float]
"""The value of a hyperparameter at a step, by the number of steps taken before it; the same whenever it is asked."""

Scheduled: TypeAlias = float | Schedule
"""A hyperparameter: a number, or a schedule."""


class Schedules:
    """The schedules among the hyperparameters of parameter groups.

    Args:
        groups: parameter groups; functions that are hyperparameters are taken out, for `apply` to put numbers there.
        names: of the hyperparameters; what else is in a group is the user's.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], names: Iterable[str]) -> None:
        known = set(names)
        self._schedules: list[dict[str, Schedule]] = [
            {name: group.pop(name) for name in known & group.keys() if callable(group[name])} for group in groups
        ]
        self._set: list[dict[str, float]] = [{} for _ in groups]

    def apply(self, groups: Sequence[dict[str, Any]], step: int, ranges: Ranges) -> None:
        """Give the groups the values of a step, and check them all.

        Args:
            groups: as many as there were.
            step: number of steps taken before it.
            ranges: the check of each hyperparameter.

        Raises:
            ValueError: for a value out of its range, or when a scheduled one is not what it has been set to; nothing
                has changed then.
        """
        self._check_untouched(groups)
        values = [{name: float(one(step)) for name, one in schedules.items()} for schedules in self._schedules]
        for number, (group, new) in enumerate(zip(groups, values, strict=True)):
            check({**group, **new}, ranges, number)
        for group, new in zip(groups, values, strict=True):
            group.update(new)
        self._set = values

    def accept(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Accept the values that the groups hold now: they have come from a checkpoint."""
        self._set = [{name: group[name] for name in values} for group, values in zip(groups, self._set, strict=True)]

    def _check_untouched(self, groups: Sequence[Mapping[str, Any]]) -> None:
        for number, (group, values) in enumerate(zip(groups, self._set, strict=True)):
            for name, value in values.items():
                if group[name] != value:
                    raise ValueError(
                        f"{name} of group {number} follows a schedule, and has been set to {group[name]} in addition "
                        "(by an LR scheduler?); give the optimizer a number to set it from outside"
                    )
