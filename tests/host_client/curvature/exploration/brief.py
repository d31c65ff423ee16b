"""Descriptions that print as the call that makes them, and how they draw what is rare."""

from __future__ import annotations

from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st


class Brief:
    """Base of dataclasses whose repr leaves out the fields that have their default."""

    def __repr__(self) -> str:
        shown = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if not _is_default(self, f)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the same in a report of hypothesis."""
        printer.text(repr(self))


def _is_default(described: Brief, field: Any) -> bool:
    value = getattr(described, field.name)
    if field.default_factory is not MISSING:
        return bool(value == field.default_factory())
    return field.default is not MISSING and bool(value == field.default)


def rarely(draw: st.DrawFn, one_in: int) -> bool:
    """Draw true once in so many times, and never in the simplest example."""
    return draw(_below(one_in)) == one_in // 2  # hypothesis prefers the first and the last


@lru_cache
def _below(number: int) -> st.SearchStrategy[int]:
    return st.integers(0, number - 1)
