"""Statistical assertions with a stated false-alarm rate.

Each assertion splits its rate evenly over the comparisons it makes (Bonferroni), so the chance that a correct device
fails it is at most that rate, whatever the correlations between the comparisons.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FALSE_ALARM = 1e-6
"""Chance that one assertion fails on a correct device."""


def whiten(
    samples: NDArray[np.float64], mean: NDArray[np.float64], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return samples (n, d) whitened: standard normal if mean (d,) and covariance (d, d) are right."""
    return np.linalg.solve(np.linalg.cholesky(covariance), (samples - mean).T).T


def assert_standard_normal(z: NDArray[np.float64], false_alarm: float = FALSE_ALARM) -> None:
    """Means 0, variances 1, correlations 0 and normal shape of samples (n, d), each by its exact distribution.

    Means are N(0, 1/n); sums of squares are χ²_n; a product sum over the norm of one of its factors is N(0, 1); all
    values pooled follow the normal law (Kolmogorov–Smirnov).
    """
    n, d = z.shape
    pairs = list(itertools.combinations(range(d), 2))
    level = false_alarm / (2 * d + len(pairs) + 1)
    edge = stats.norm.isf(level / 2)
    means = np.sqrt(n) * z.mean(0)
    assert np.abs(means).max() < edge, f"means off by {np.abs(means).max():.1f} standard errors (limit {edge:.1f})"
    low, high = stats.chi2.ppf(level / 2, n), stats.chi2.isf(level / 2, n)
    squares = (z**2).sum(0)
    assert low < squares.min(), f"a variance is {squares.min() / n:.3f} of what it should be"
    assert squares.max() < high, f"a variance is {squares.max() / n:.3f} of what it should be"
    for i, j in pairs:
        product = z[:, i] @ z[:, j] / np.linalg.norm(z[:, j])
        assert abs(product) < edge, f"components {i} and {j} are correlated: {product:.1f} standard errors"
    shape = stats.kstest(z.ravel(), "norm")
    assert shape.pvalue > level, f"not normal: Kolmogorov–Smirnov p = {shape.pvalue:.1e}"
