"""Differences between runs that share everything but one property, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Paired:
    """Result of a paired t test of differences by seed. For fewer than two seeds everything but the mean is nan.

    Attributes:
        differences: by seed.
        mean: of them.
        low: end of the 95 % confidence interval of the mean.
        high: its other end.
        p: chance of differences as large as these if there is none, two-sided.
        detectable: smallest difference that a test of this size, at the 5 % level and with this spread, sees in 80 %
            of all repetitions.
    """

    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    p: float
    detectable: float


def compare(differences: Sequence[float]) -> Paired | None:
    """The paired t test of differences by seed; None where there are none."""
    n = len(differences)
    if n == 0:
        return None
    mean, error = fmean(differences), stdev(differences) / math.sqrt(n) if n > 1 else math.nan
    if not error > 0:  # one seed, or runs that are the same to the bit
        same = n > 1 and mean == 0.0
        edge, p = (0.0, 1.0) if same else (math.nan, math.nan)
        return Paired(tuple(differences), mean, edge, edge, p, edge)
    from scipy import stats

    test = stats.ttest_1samp(differences, 0.0)
    low, high = map(float, test.confidence_interval(CONFIDENCE))
    return Paired(tuple(differences), mean, low, high, float(test.pvalue), error * _detectable_errors(n))


def _detectable_errors(n: int) -> float:
    """`Paired.detectable` in standard errors of the mean: the offset of a noncentral t that passes in 80 % of cases."""
    from scipy import optimize, stats

    critical = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return float(optimize.brentq(lambda offset: stats.nct.sf(critical, n - 1, offset) - POWER, 0.0, 10 * critical))
