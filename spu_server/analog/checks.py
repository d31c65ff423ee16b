"""Fields that a board cannot have."""

from __future__ import annotations

from spu_server.analog.rounding import codes


def positive(part: object, *fields: str) -> None:
    """Refuse fields that are not above 0.

    Raises:
        ValueError: naming the field and its value.
    """
    for field in fields:
        value = getattr(part, field)
        if not value > 0:
            raise ValueError(f"{field} of {type(part).__name__} is {value}; expected a number above 0")


def resolvable(part: object, bits: int | None, largest: float, ranging: bool) -> None:
    """Refuse bits that leave no code, or that have no finite range to divide.

    Raises:
        ValueError: saying which.
    """
    if bits is None:
        return
    codes(bits)
    if largest == float("inf") and not ranging:
        raise ValueError(f"{type(part).__name__} has {bits} bits, but neither a finite range for them nor ranging")
