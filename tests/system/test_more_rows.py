"""Programs whose factor has more rows than columns, through the whole: a device in this process and its client."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from host_client import connect
from spu_link.operators import Kept, LinearRows
from spu_server.dynamics.functions import integrated_response, response

M, N = 1020, 257


@pytest.fixture(scope="module")
def problem():
    """Rows of a linear layer in float64, singular values over 8 decades; with eigenvalues and eigenvectors of F."""
    generator = torch.Generator().manual_seed(0)
    inputs, cotangents, drive = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((M, 256), (1, M, 1), (N,))
    )
    inputs *= torch.logspace(-1.5, -9.5, 256, dtype=torch.float64)
    operator = LinearRows(inputs, cotangents, bias=True)
    _, singular, right = np.linalg.svd(operator.dense().numpy(), full_matrices=False)
    return operator, drive, singular**2, right


def mean(problem, damping, drive, duration, x0=None):
    """x(t) from x₀, the drive by default."""
    _, _, s, right = problem
    f, b = s + damping, right @ drive.numpy()
    start = b if x0 is None else right @ x0
    return right.T @ (np.exp(-f * duration) * start - np.expm1(-f * duration) / f * b)


def assert_close(found, expected, bound):
    assert np.linalg.norm(np.asarray(found) - expected) <= bound * np.linalg.norm(expected)


def rounding(problem, damping, duration):
    """Relative error that the rounding of F, ε N ‖F‖, makes."""
    return np.finfo(np.float64).eps * N * (1.0 + problem[2].max() / (damping + 1.0 / duration))


@pytest.mark.parametrize("damping", [1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("duration", [1e2, 1e4, 1e6])
def test_a_reading_is_the_exact_mean_at_its_finite_time(problem, damping, duration):
    operator, drive, *_ = problem
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        reading = session.solve(operator, drive, damping=damping, analog_time=duration, start="drive")
    assert_close(reading.value, mean(problem, damping, drive, duration), rounding(problem, damping, duration))


def test_a_kept_operator_serves_another_drive_and_damping(problem):
    operator, drive, *_ = problem
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        first = session.solve(operator, drive, damping=1e-3, analog_time=10.0, start="drive")
        kept = Kept(first.sequence, N)
        reading = session.solve(kept, -drive, damping=1e-5, analog_time=1e4, start="keep")
    expected = mean(problem, 1e-5, -drive, 1e4, mean(problem, 1e-3, drive, 10.0))
    assert_close(reading.value, expected, rounding(problem, 1e-5, 1e4))


def test_an_average_over_a_window_is_exact_too(problem):
    operator, drive, s, right = problem
    damping, duration, window = 1e-5, 1.1e4, 1e4
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        reading = session.solve(operator, drive, damping=damping, analog_time=duration, start="drive", window=window)
    f, begun = s + damping, right @ mean(problem, damping, drive, duration - window)
    total = right.T @ (response(f, window) * begun + integrated_response(f, window) * (right @ drive.numpy()))
    assert_close(reading.value, total / window, rounding(problem, damping, duration))
