"""Checks of the numbers that describe a device."""

from __future__ import annotations


def positive(part: object, *fields: str) -> None:
    """Refuse fields that are not above 0.

    Raises:
        ValueError: naming the field and its value.
    """
    for field in fields:
        value = getattr(part, field)
        if not value > 0:
            raise ValueError(f"{field} of {type(part).__name__} is {value}; expected a number above 0")
