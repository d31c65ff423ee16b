"""Ranges of hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Range:
    """The values that a hyperparameter may have.

    Attributes:
        rule: which these are, as the end of a message.
        accepts: says whether a value is one of them.
    """

    rule: str
    accepts: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is none of them.

        Raises:
            ValueError: naming the hyperparameter.
        """
        if not self.accepts(value):
            shown = repr(value) if isinstance(value, str) else value
            raise ValueError(f"Invalid {name}: {shown}; {self.rule}")


Ranges: TypeAlias = Mapping[str, Range]
"""The range of each hyperparameter, by its name; a name that is not there is none."""

AT_LEAST_ZERO = Range("it must be at least 0", lambda value: value >= 0.0)
AUTO_OR_AT_LEAST_ZERO = Range(
    "it must be at least 0, or 'auto'",
    lambda value: value == "auto" if isinstance(value, str) else value >= 0.0,
)
ABOVE_ZERO = Range("it must be more than 0", lambda value: value > 0.0)
NONE_OR_ABOVE_ZERO = Range("it must be more than 0, or None", lambda value: value is None or value > 0.0)
SOLVABLE = Range("a digital solve needs more than 0", lambda value: value > 0.0)
FRACTION = Range("it must be at least 0 and less than 1", lambda value: 0.0 <= value < 1.0)
TWO_FRACTIONS = Range(
    "it must be two numbers, each at least 0 and less than 1",
    lambda value: isinstance(value, (tuple, list)) and len(value) == 2 and all(0.0 <= beta < 1.0 for beta in value),
)
COUNT = Range(
    "it must be a whole number, at least 1",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
)


def one_of(*known: object) -> Range:
    """The range of these values alone."""
    return Range(f"it must be one of {', '.join(map(repr, known))}", lambda value: value in known)


COMMON: Ranges = {
    "lr": AT_LEAST_ZERO,
    "damping": AT_LEAST_ZERO,
    "momentum": FRACTION,
    "betas": TWO_FRACTIONS,
    "eps": ABOVE_ZERO,
    "weight_decay": AT_LEAST_ZERO,
    "trust_region": NONE_OR_ABOVE_ZERO,
    "spring": FRACTION,
}
"""Of the hyperparameters that every natural-gradient optimizer has."""


def check(group: Mapping[str, Any], ranges: Ranges, number: int) -> None:
    """Refuse a parameter group with a value out of its range.

    Raises:
        ValueError: naming the hyperparameter, and the group if it is not the first one.
    """
    for name, allowed in ranges.items():
        if name in group:
            shown = name if number == 0 else f"{name} of group {number}"
            if callable(group[name]):
                raise ValueError(
                    f"Invalid {shown}: a function; set a number, schedules are what an optimizer is made with"
                )
            allowed.check(shown, group[name])


def check_together(groups: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> None:
    """Refuse hyperparameters that have no meaning together.

    Args:
        groups: the parameter groups, with numbers or schedules.
        given: what the optimizer is made with, and is of no group alone; momentum too.

    Raises:
        ValueError: naming what does not go with betas, or with spring.
    """
    betas = next((group["betas"] for group in groups if not group["adam"] and "betas" in group), None)
    if callable(betas):
        raise ValueError("Invalid betas: a function; they must be two numbers, and only numbers can be scheduled")
    for name, unset, reason in (
        ("momentum", 0, "Adam's rule has its own"),
        ("trust_region", None, "no step is along g̃"),
        ("line_search", None, "no step is along g̃"),
        ("spring", 0, "Adam's rule has its own momentum"),
    ):
        if betas is not None and given[name] != unset:
            raise ValueError(f"Invalid {name}: {given[name]}; with betas it must be {unset}, {reason}")
    check_one_momentum(groups)


def check_one_momentum(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse momentum of the update in addition to that of the drive, `spring`; a scheduler may have set it.

    Raises:
        ValueError: naming the value.
    """
    if all(group.get("spring", 0.0) == 0.0 for group in groups):
        return
    for group in groups:
        if not group["adam"] and group.get("momentum", 0.0) != 0.0:
            raise ValueError(
                f"Invalid momentum: {group['momentum']}; with spring it must be 0 in every group, spring is a momentum "
                "of its own (OneCycleLR: cycle_momentum=False)"
            )
