"""What values hyperparameters may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[str, Any], None]
"""Raises ValueError when the hyperparameter of this name may not have this value."""

Ranges: TypeAlias = Mapping[str, Check]
"""The check of each hyperparameter, by its name; a name that is not there is none."""


def at_least_zero(name: str, value: Any) -> None:
    """Refuse what is negative or not a number.

    Raises:
        ValueError: naming the hyperparameter.
    """
    if not value >= 0.0:
        raise ValueError(f"Invalid {name}: {value}; it must be at least 0")


def above_zero(name: str, value: Any) -> None:
    """Refuse what is not positive.

    Raises:
        ValueError: naming the hyperparameter.
    """
    if not value > 0.0:
        raise ValueError(f"Invalid {name}: {value}; it must be more than 0")


def none_or_above_zero(name: str, value: Any) -> None:
    """Refuse what is neither None nor positive.

    Raises:
        ValueError: naming the hyperparameter.
    """
    if not (value is None or value > 0.0):
        raise ValueError(f"Invalid {name}: {value}; it must be more than 0, or None")


def share(name: str, value: Any) -> None:
    """Refuse what is not at least 0 and less than 1.

    Raises:
        ValueError: naming the hyperparameter.
    """
    if not 0.0 <= value < 1.0:
        raise ValueError(f"Invalid {name}: {value}; it must be at least 0 and less than 1")


def two_shares(name: str, value: Any) -> None:
    """Refuse what are not two numbers, each at least 0 and less than 1.

    Raises:
        ValueError: naming the hyperparameter.
    """
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(0.0 <= beta < 1.0 for beta in value)):
        raise ValueError(f"Invalid {name}: {value}; it must be two numbers, each at least 0 and less than 1")


def at_least_one(name: str, value: Any) -> None:
    """Refuse what is not a whole number of at least 1.

    Raises:
        ValueError: naming the hyperparameter.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"Invalid {name}: {value}; it must be a whole number, at least 1")


def one_of(*known: object) -> Check:
    """The check that refuses all but these."""

    def check_one(name: str, value: Any) -> None:
        if value not in known:
            raise ValueError(f"Invalid {name}: {value!r}; it must be one of {', '.join(map(repr, known))}")

    return check_one


COMMON: Ranges = {
    "lr": at_least_zero,
    "damping": at_least_zero,
    "momentum": share,
    "betas": two_shares,
    "eps": above_zero,
    "weight_decay": at_least_zero,
    "trust_region": none_or_above_zero,
    "spring": share,
}
"""Of the hyperparameters that every natural-gradient optimizer has."""


def check(group: Mapping[str, Any], ranges: Ranges, number: int) -> None:
    """Refuse a parameter group with a value out of its range.

    Raises:
        ValueError: naming the hyperparameter, and the group if it is not the first one.
    """
    for name, one in ranges.items():
        if name in group:
            shown = name if number == 0 else f"{name} of group {number}"
            if callable(group[name]):
                raise ValueError(
                    f"Invalid {shown}: a function; set a number, schedules are what an optimizer is made with"
                )
            one(shown, group[name])


def check_together(
    groups: Sequence[Mapping[str, Any]], *, momentum: object, trust_region: object, spring: object, line_search: object
) -> None:
    """Refuse hyperparameters that have no meaning together.

    Args:
        groups: the parameter groups, with numbers or schedules.
        momentum, trust_region, spring, line_search: what the optimizer is made with.

    Raises:
        ValueError: naming what does not go with betas, or with spring.
    """
    natural = [group for group in groups if not group["adam"]]
    if "betas" in natural[0]:
        if callable(natural[0]["betas"]):
            raise ValueError("Invalid betas: a function; they must be two numbers, and only numbers can be scheduled")
        if momentum != 0.0:
            raise ValueError(f"Invalid momentum: {momentum}; with betas it must be 0, Adam's rule has its own")
        for name, value in (("trust_region", trust_region), ("line_search", line_search)):
            if value is not None:
                raise ValueError(f"Invalid {name}: {value}; with betas it must be None, steps do not go along g̃")
        if spring != 0.0:
            raise ValueError(f"Invalid spring: {spring}; with betas it must be 0, Adam's rule has its own momentum")
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
