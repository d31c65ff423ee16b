"""Targets of the ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """A bound on a ratio.

    Attributes:
        side: whether the ratio must be at least or at most the bound.
        bound: the bound.
    """

    side: Literal["at least", "at most"]
    bound: float

    def met(self, value: float) -> bool:
        """Return whether a ratio keeps it; not a number never does."""
        return value >= self.bound if self.side == "at least" else value <= self.bound

    def __str__(self) -> str:
        """For a table, such as ``≥ 80``."""
        return f"{'≥' if self.side == 'at least' else '≤'} {self.bound:g}"
