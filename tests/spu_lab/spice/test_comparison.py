"""The comparison with the law finds what differs and passes what does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spu_lab.spice.comparison import compare, covariance, effective_number
from spu_lab.spice.netlist import Network
from spu_lab.spice.ngspice import Trajectory
from spu_lab.spice.prediction import mean

NETWORK = Network(np.array([[1.0, -0.4], [-0.4, 0.6]]), 0.1, np.array([1.0, -1.0]), np.array([0.5, 0.5]), noise=0.02)
TIMES = np.arange(0.5, 10.1, 0.5)
FALSE_ALARM = 1e-6


def exact_samples(copies: int, seed: int) -> Trajectory:
    """Draw from the law, step by step."""
    rng = np.random.default_rng(seed)
    rates, vectors = np.linalg.eigh(NETWORK.matrix)
    kept = np.exp(-0.5 * rates)
    fresh = np.sqrt(NETWORK.noise * (1.0 - kept**2) / rates)
    modes = [np.zeros((copies, 2))]
    for _ in TIMES:
        modes.append(kept * modes[-1] + fresh * rng.normal(size=(copies, 2)))
    return Trajectory(TIMES, np.array(modes[1:]) @ vectors.T + mean(NETWORK, TIMES)[:, None])


def test_samples_of_the_law_pass() -> None:
    samples = exact_samples(400, seed=1)
    for chosen in (samples, Trajectory(samples.times[:1], samples.states[:1])):
        tests = compare(NETWORK, chosen)
        assert [test.quantity for test in tests] == ["mean 1", "mean 2", "variance 1", "variance 2", "covariance 1 2"]
        assert min(test.p for test in tests) > FALSE_ALARM / len(tests)


def test_values_of_p_are_uniform_where_the_law_holds() -> None:
    drawn = [[test.p for test in compare(NETWORK, exact_samples(30, seed))] for seed in range(200)]
    below = (np.array(drawn) < 0.1).mean(0)
    assert np.abs(below - 0.1).max() < 5.0 * np.sqrt(0.09 / 200)  # a false alarm in 3e-6 of such tests


@pytest.mark.parametrize(("changes", "quantity"), [({"noise": 0.03}, "variance"), ({"damping": 0.2}, "mean")])
def test_another_noise_or_damping_is_found(changes: dict[str, float], quantity: str) -> None:
    tests = compare(replace(NETWORK, **changes), exact_samples(400, seed=1))  # type: ignore[arg-type]
    assert min(test.p for test in tests if test.quantity.startswith(quantity)) < 1e-9


def test_the_effective_number_is_that_of_the_variance_of_a_mean() -> None:
    assert effective_number(1, 0.9) == 1.0
    assert effective_number(10, 0.0) == 10.0
    places = np.arange(10)
    assert effective_number(10, 0.7) == pytest.approx(1.0 / (0.7 ** np.abs(places[:, None] - places)).mean())


def test_the_covariance_grows_from_nothing_to_the_stationary_one() -> None:
    np.testing.assert_allclose(covariance(NETWORK, 0.0), 0.0)
    np.testing.assert_allclose(covariance(NETWORK, 1e3), NETWORK.noise * np.linalg.inv(NETWORK.matrix), rtol=1e-9)
