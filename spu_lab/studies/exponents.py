"""Exponents of measured costs, from straight lines through their logarithms, compared with stated ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy.stats import t as student

Place: TypeAlias = Literal["below", "within", "above"]

TOLERANCE = 0.1
"""Max distance of an interval above a stated exponent that it confirms: caches and rounded widths have that effect."""

WIDE = 0.5
"""Half width of an interval that decides nothing."""


@dataclass(frozen=True)
class Exponent:
    """Exponent p of a cost that is proportional to sizeᵖ.

    Attributes:
        value: slope of the line of least squares.
        half: half width of its 95 % confidence interval; infinite with two sizes.
        smallest: first size of the range.
        largest: last size.
    """

    value: float
    half: float
    smallest: float
    largest: float

    def place(self, stated: float) -> Place | None:
        """Return where the interval is in relation to a stated exponent, None where it is too wide.

        As an upper bound O(sizeᵖ) the stated exponent holds in the first two places.
        """
        if self.half > WIDE:
            return None
        if self.value - self.half > stated + TOLERANCE:
            return "above"
        return "below" if self.value + self.half < stated else "within"

    def __str__(self) -> str:
        """Value and half width."""
        return f"{self.value:.2f} ± {self.half:.2f}" if math.isfinite(self.half) else f"{self.value:.2f}"


def fit_exponent(sizes: Sequence[float], costs: Sequence[Sequence[float]]) -> Exponent:
    """Fit a straight line to the logarithms of repeated measurements.

    The line is that of least squares through all of them. The interval is that of the line through the means of each
    size, with Student's t for the number of sizes less 2: repetitions of a size deviate together from the line,
    and do not narrow it.

    Args:
        sizes: at least two, all positive.
        costs: of each size, as many repetitions of each; all positive.
    """
    x = np.log(np.array(sizes, dtype=float))
    y = np.log(np.array(costs, dtype=float)).mean(axis=1)
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    half = math.inf
    if len(x) > 2:
        residuals = y - y.mean() - slope * centred
        error = math.sqrt(float(residuals @ residuals) / (len(x) - 2) / float(centred @ centred))
        half = float(student.ppf(0.975, len(x) - 2)) * error
    return Exponent(slope, half, float(min(sizes)), float(max(sizes)))
