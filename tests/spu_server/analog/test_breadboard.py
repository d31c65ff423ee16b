"""The two-node breadboard: what its components predict, against what was published of it."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch

from spu_server.analog.doubling import DenseLaw
from spu_server.analog.presets import TWO_NODES

PUBLISHED = {0.01: 0.12540, 0.02: 0.08782, 0.04: 0.06371, 0.08: 0.04495, 0.15: 0.03239, 0.3: 0.02641}
"""Relative scatter of Σ₁₁ over windows of T seconds, as measured: data/precision-vs-time.csv."""

WINDOWS = {0.01: 1800, 0.02: 900, 0.04: 450, 0.08: 210, 0.15: 120, 0.3: 60}
"""Windows behind each: a scatter is known to 1/√(2n) of itself."""


def error_of_variance(seconds: float) -> float:
    """Relative statistical error of Σ₁₁ from a time average of v₁² over `seconds`.

    For a Gaussian process with the autocovariance c(s), the variance of the average is (4/T²) ∫₀ᵀ (T − s) c(s)² ds.
    Here c is a sum of two exponentials.
    """
    sigma = scipy.linalg.solve_continuous_lyapunov(TWO_NODES.rates, np.eye(2))
    values, vectors = np.linalg.eig(TWO_NODES.rates)
    weights = (vectors[0] * (np.linalg.inv(vectors) @ sigma[:, 0])).real  # c(s) = Σ_k w_k e^{−values_k s}
    rates = np.add.outer(values.real, values.real)
    total = np.outer(weights, weights) * (seconds / rates + np.expm1(-rates * seconds) / rates**2)
    return float(np.sqrt(4.0 * total.sum() / seconds**2) / sigma[0, 0])


def slope(errors: dict[float, float]) -> float:
    return float(np.polyfit(np.log(list(errors)), np.log(list(errors.values())), 1)[0])


def test_the_time_constants_are_those_of_the_measured_components() -> None:
    slow, fast = np.sort(1.0 / np.linalg.eigvals(TWO_NODES.rates).real)[::-1]
    assert abs(slow / 92e-6 - 1.0) < 0.03
    assert abs(fast / 41.6e-6 - 1.0) < 0.03


def test_the_error_of_a_time_average_falls_with_the_root_of_time_and_is_ten_percent_at_twenty_ms() -> None:
    errors = {t: error_of_variance(t) for t in PUBLISHED}
    assert abs(slope(errors) + 0.5) < 0.05
    assert abs(errors[0.02] - 0.10) < 0.015
    for t, published in PUBLISHED.items():
        assert abs(published / errors[t] - 1.0) < 3.0 / np.sqrt(2 * WINDOWS[t]), f"at {t} s"


def test_simulated_averages_scatter_as_computed() -> None:
    """200 boards for 300 ms: a scatter of n windows is known to 1/√(2n) of itself, and within 5 times that here."""
    boards, interval = 200, 20e-6
    law = DenseLaw(torch.from_numpy(TWO_NODES.rates), interval, noise=True, integral=False)
    assert law.root is not None
    # Samples at intervals y τ scatter √(y coth y) times more than a continuous average; here y = 0.25, so by 1 %.
    random = torch.Generator().manual_seed(0)
    steps = round(0.3 / interval)
    x = torch.zeros(2, boards, dtype=torch.float64)
    squares = torch.empty(steps, boards, dtype=torch.float64)
    for step in range(-100, steps):
        x = law.mean.decay @ x + law.root @ torch.randn(2, boards, generator=random, dtype=torch.float64)
        if step >= 0:
            squares[step] = x[0] ** 2
    scatter, expected = {}, {}
    for t in (0.01, 0.02, 0.05, 0.1, 0.3):
        windows = squares.unflatten(0, (-1, round(t / interval))).mean(1).flatten()
        scatter[t] = float(windows.std() / windows.mean())
        expected[t] = error_of_variance(t)
        assert abs(scatter[t] / expected[t] - 1.0) < 0.015 + 5.0 / np.sqrt(2 * len(windows)), f"at {t} s"
    assert abs(slope(scatter) + 0.5) < 0.05


def test_the_fitted_noise_gives_the_published_voltage() -> None:
    law = DenseLaw(torch.from_numpy(TWO_NODES.matrix), 100.0, noise=True, integral=False)
    assert law.root is not None
    variance = TWO_NODES.noise * (law.root @ law.root.T)[0, 0]
    assert abs(float(variance) ** 0.5 / 0.7097e-3 - 1.0) < 1e-9
