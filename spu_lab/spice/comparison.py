"""Test samples of a network against the law of the Ornstein–Uhlenbeck process.

In the eigenvectors of F + λI the components of the state are independent. Divided by their standard deviations at each
time they are standard normal, with the correlation ρ = e^{−fΔ} from sample to sample. Then the mean of n samples has
the variance 1/n′, with n′ = n/(1 + 2 Σₖ (1 − k/n) ρᵏ) the effective number, and sums of squares and of products are
tested with the n′ that follows from the products of the ρ. Samples of different copies are independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from spu_lab.spice.netlist import Network
from spu_lab.spice.ngspice import Trajectory
from spu_lab.spice.prediction import mean


@dataclass(frozen=True)
class Comparison:
    """One number of the samples, and how often a network that follows the law is further off.

    Attributes:
        quantity: ``"mean 1"``, ``"variance 1"`` or ``"covariance 1 2"``, with the numbers of the eigenvectors.
        value: the mean, the variance or the covariance of the components; by the law 0, 1 and 0.
        effective: number of independent samples that weigh as much.
        p: two-sided, in [0, 1].
    """

    quantity: str
    value: float
    effective: float
    p: float


def covariance(network: Network, time: float) -> NDArray[np.float64]:
    """Return the covariance κ₀ (I − e^{−2(F+λI)t}) (F + λI)⁻¹ at a time in τ, from a start without spread, V²."""
    rates, vectors = np.linalg.eigh(network.matrix)
    spread: NDArray[np.float64] = (vectors * (network.noise * -np.expm1(-2.0 * rates * time) / rates)) @ vectors.T
    return spread


def compare(network: Network, samples: Trajectory) -> list[Comparison]:
    """Compare means, variances and covariances of samples, at one time or at several of even spacing, with the law."""
    rates, vectors = np.linalg.eigh(network.matrix)
    spread = np.sqrt(network.noise * -np.expm1(-2.0 * np.outer(samples.times, rates)) / rates)
    expected = mean(network, samples.times)
    modes = (samples.states - expected[:, None]) @ vectors / spread[:, None]
    points, copies, cells = modes.shape
    spacing = samples.times[1] - samples.times[0] if points > 1 else np.inf
    kept = np.exp(-rates * spacing)

    def number(correlation: float) -> float:
        return float(copies * effective_number(points, correlation))

    found = []
    for i in range(cells):
        value, effective = float(modes[..., i].mean()), number(kept[i])
        found.append(Comparison(f"mean {i + 1}", value, effective, _normal(value, effective)))
    for i in range(cells):
        value, effective = float((modes[..., i] ** 2).mean()), number(kept[i] ** 2)
        tail = min(stats.chi2.cdf(value * effective, effective), stats.chi2.sf(value * effective, effective))
        found.append(Comparison(f"variance {i + 1}", value, effective, min(1.0, 2.0 * float(tail))))
    for i, j in combinations(range(cells), 2):
        value, effective = float((modes[..., i] * modes[..., j]).mean()), number(kept[i] * kept[j])
        found.append(Comparison(f"covariance {i + 1} {j + 1}", value, effective, _normal(value, effective)))
    return found


def effective_number(count: int, correlation: float) -> float:
    """Return the number of independent samples whose mean spreads as that of a series with a correlation."""
    lags = np.arange(1, count)
    return float(count / (1.0 + 2.0 * ((1.0 - lags / count) * correlation**lags).sum()))


def _normal(value: float, effective: float) -> float:
    return 2.0 * float(stats.norm.sf(abs(value) * np.sqrt(effective)))
