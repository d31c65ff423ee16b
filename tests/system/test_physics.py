"""The device obeys dx = −((F + λI) x − b) ds + √(2κ₀) dW: over gRPC, on a stepped clock, against closed forms.

Statistical tests run `COPIES` independent copies of a small problem side by side on one device, so that one reading
gives as many samples. On a correct device each fails with a chance of at most 1e-6 (`tests.statistics`); fixed seeds.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from host_client import connect
from spu_link.operators import Dense, Rows
from tests.daemon import Daemon
from tests.statistics import assert_standard_normal, whiten

LAMBDA, KAPPA = 0.3, 0.05
COPIES = 60
READINGS = 40


class Problem:
    """A small problem with closed forms, in float64."""

    def __init__(self, n: int = 3, rank: int = 2, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.a = rng.normal(size=(rank, n))
        self.b = rng.normal(size=n)
        self.x0 = rng.normal(size=n) * 3.0
        self.n = n
        self.f = self.a.T @ self.a + LAMBDA * np.eye(n)

    @property
    def solution(self):
        return np.linalg.solve(self.f, self.b)

    def mean(self, t, x0):
        return self.solution + expm(-self.f * t) @ (x0 - self.solution)

    def covariance(self, t):
        return KAPPA * np.linalg.solve(self.f, np.eye(self.n) - expm(-2.0 * self.f * t))

    def window_mean(self, x0, start, end):
        decayed = np.linalg.solve(self.f, expm(-self.f * start) - expm(-self.f * end))
        return self.solution + decayed @ (x0 - self.solution) / (end - start)

    def window_covariance_when_stationary(self, w):
        """Of (1/w)∫x ds over w τ of the stationary process: 2κ₀ F⁻² (w − F⁻¹(1 − e^{−Fw})) / w²."""
        inverse = np.linalg.inv(self.f)
        return (
            2.0
            * KAPPA
            * inverse
            @ inverse
            @ (w * np.eye(self.n) - inverse @ (np.eye(self.n) - expm(-self.f * w)))
            / w**2
        )

    def operator(self, kind):
        """COPIES of the problem side by side, as a dense matrix or as rows."""
        rows = np.kron(np.eye(COPIES), self.a)
        return Rows(rows) if kind == "rows" else Dense(rows.T @ rows)

    def copies(self, vector):
        return np.tile(vector, COPIES)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """On a daemon of its own: the larger device times are, the coarser."""
    with (
        Daemon(tmp_path_factory.mktemp("d") / "s", "--clock", "stepped") as daemon,
        connect(daemon.address) as spu,
        spu.session() as session,
    ):
        yield session


@pytest.fixture(params=["rows", "dense"])
def kind(request):
    return request.param


def samples_of(reading, problem):
    return reading.value.numpy().reshape(COPIES, problem.n)


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0, 7.0])
def test_without_noise_the_state_follows_the_mean_exactly(session, kind, t):
    problem = Problem(n=5, rank=3)
    applied = session.program(
        problem.operator(kind), problem.copies(problem.b), damping=LAMBDA, start=problem.copies(problem.x0)
    )
    session.advance(t)
    reading = session.read()
    assert reading.time == applied.time + t
    assert reading.sequence == applied.sequence
    expected = problem.copies(problem.mean(t, problem.x0))
    np.testing.assert_allclose(reading.value.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_several_readings_on_the_way_lie_on_one_path(session, kind):
    problem = Problem(n=5, rank=3)
    session.program(problem.operator(kind), problem.copies(problem.b), damping=LAMBDA, start="drive")
    total = 0.0
    for step in (0.0, 0.2, 0.05, 3.0, 1.0):
        session.advance(step)
        total += step
        expected = problem.copies(problem.mean(total, problem.b))
        # A sum of times is rounded at the device's time, which is as long as the tests before have taken.
        np.testing.assert_allclose(session.read().value.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_at_time_zero_a_start_from_the_drive_is_the_gradient_itself(session, kind):
    problem = Problem()
    drive = problem.copies(problem.b)
    session.program(problem.operator(kind), drive, damping=LAMBDA, noise=KAPPA, start="drive")
    np.testing.assert_array_equal(session.read().value.numpy(), drive)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["rows", "dense"])
def test_after_a_long_time_the_state_is_the_solve_at_condition_number_1e4(session, dtype, kind):
    n, m, damping = 300, 120, 1e-2
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    # Eigenvalues of F + λI from λ to 1e4 λ.
    values = torch.logspace(-3, np.log10(damping * (1e4 - 1.0)), m, dtype=torch.float64).sqrt()
    a = (left * values @ right[:, :m].T).to(dtype)
    b = torch.randn(n, dtype=torch.float64, generator=generator).to(dtype)
    operator = Rows(a) if kind == "rows" else Dense((a.double().T @ a.double()).to(dtype))
    f = operator.dense().double() if kind == "dense" else a.double().T @ a.double()
    expected = torch.linalg.solve(f + damping * torch.eye(n, dtype=torch.float64), b.double())
    reading = session.solve(operator, b, damping=damping, analog_time=1e5, start="drive")
    assert reading.value.dtype == dtype
    error = torch.linalg.norm(reading.value.double() - expected) / torch.linalg.norm(expected)
    assert error < 1e-5


@pytest.mark.parametrize("t", [0.05, 0.7, 4.0, 200.0])
def test_the_law_is_that_of_the_transient_and_at_last_the_stationary_one(session, kind, t):
    problem = Problem()
    found = []
    for _ in range(READINGS // 2):
        start = problem.copies(problem.x0)
        session.program(problem.operator(kind), problem.copies(problem.b), damping=LAMBDA, noise=KAPPA, start=start)
        session.advance(t)
        found.append(samples_of(session.read(), problem))
    assert_standard_normal(whiten(np.concatenate(found), problem.mean(t, problem.x0), problem.covariance(t)))


def test_two_halves_of_a_step_are_in_law_one_step(session, kind):
    problem, t = Problem(), 1.4
    halves, wholes = [], []
    for _ in range(READINGS // 2):
        start = problem.copies(problem.x0)
        session.program(problem.operator(kind), problem.copies(problem.b), damping=LAMBDA, noise=KAPPA, start=start)
        session.advance(t / 2)
        halves.append(samples_of(session.read(), problem))
        session.advance(t / 2)
        wholes.append(samples_of(session.read(), problem))
    half, whole = np.concatenate(halves), np.concatenate(wholes)
    # Jointly: the first half, and what the second half adds to it, are independent with the laws of half a step.
    decay = expm(-problem.f * t / 2)
    added = whole - problem.solution - (half - problem.solution) @ decay.T
    first = whiten(half, problem.mean(t / 2, problem.x0), problem.covariance(t / 2))
    second = whiten(added, np.zeros(problem.n), problem.covariance(t / 2))
    assert_standard_normal(np.concatenate([first, second], axis=1))
    # And the whole has the law of one step.
    assert_standard_normal(whiten(whole, problem.mean(t, problem.x0), problem.covariance(t)))


def test_a_window_average_without_noise_is_the_mean_of_the_path(session, kind):
    problem = Problem()
    session.program(problem.operator(kind), problem.copies(problem.b), damping=LAMBDA, start=problem.copies(problem.x0))
    session.advance(2.5)
    reading = session.read(window=1.5)
    assert reading.window == 1.5
    expected = problem.copies(problem.window_mean(problem.x0, 1.0, 2.5))
    np.testing.assert_allclose(reading.value.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("window", [0.02, 1.0, 30.0])
def test_a_window_average_has_its_exact_variance(session, kind, window):
    problem = Problem()
    session.program(problem.operator(kind), problem.copies(problem.b), damping=LAMBDA, noise=KAPPA)
    found = []
    for _ in range(READINGS // 2):
        session.advance(200.0 + window)
        found.append(samples_of(session.read(window=window), problem))
    covariance = problem.window_covariance_when_stationary(window)
    assert_standard_normal(whiten(np.concatenate(found), problem.solution, covariance))


def test_a_window_average_is_jointly_distributed_with_the_state_at_its_end(session, kind):
    problem, t = Problem(), 1.2
    averages, ends = [], []
    for _ in range(READINGS // 2):
        start = problem.copies(problem.x0)
        session.program(problem.operator(kind), problem.copies(problem.b), damping=LAMBDA, noise=KAPPA, start=start)
        session.advance(t)
        averages.append(samples_of(session.read(window=t), problem))
        ends.append(samples_of(session.read(), problem))
    # cov(∫x, x(t)) = κ₀ F⁻² (1 − e^{−Ft})²; var ∫x as in the closed form of the transient.
    n, decay, inverse = problem.n, expm(-problem.f * t), np.linalg.inv(problem.f)
    response = inverse @ (np.eye(n) - decay)
    cross = KAPPA * response @ response / t
    variance = (
        2 * KAPPA * inverse @ inverse @ (t * np.eye(n) - 2 * response + 0.5 * inverse @ (np.eye(n) - decay @ decay))
    ) / t**2
    covariance = np.block([[problem.covariance(t), cross], [cross, variance]])
    mean = np.concatenate([problem.mean(t, problem.x0), problem.window_mean(problem.x0, 0.0, t)])
    joint = np.concatenate([np.concatenate(ends), np.concatenate(averages)], axis=1)
    assert_standard_normal(whiten(joint, mean, covariance))


@pytest.mark.parametrize("way", ["read", "solve"])
@pytest.mark.parametrize("t", [0.1, 0.3, 1.2, 1.7])
def test_a_window_over_all_of_a_program_can_be_read_though_times_are_rounded(t, way):
    """(2.4 + 1.2) − 1.2 is less than 2.4."""
    operator, drive, found = Rows(np.ones((1, 3))), np.ones(3), []
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        for _ in range(50):
            if way == "read":
                session.program(operator, drive, damping=LAMBDA, start="drive")
                session.advance(t)
                found.append(session.read(window=t).value)
            else:
                found.append(
                    session.solve(operator, drive, damping=LAMBDA, analog_time=t, window=t, start="drive").value
                )
    np.testing.assert_allclose(np.stack(found), np.tile(found[0], (50, 1)), rtol=1e-9)


def test_undamped_rank_deficient_directions_diffuse_freely(session):
    # F = 0: the state is a random walk with drift b, of variance 2κ₀t.
    n, t = 200, 3.0
    drive = np.linspace(-1.0, 1.0, n)
    session.program(Rows(np.zeros((2, n))), drive, noise=KAPPA, start=np.zeros(n))
    session.advance(t)
    z = (session.read().value.numpy() - t * drive) / np.sqrt(2 * KAPPA * t)
    assert_standard_normal(z[:, None])


def test_a_new_program_takes_over_the_state_of_the_old_one(session, kind):
    problem = Problem()
    operator, drive = problem.operator(kind), problem.copies(problem.b)
    session.program(operator, drive, damping=LAMBDA, start=problem.copies(problem.x0))
    session.advance(0.4)
    session.program(operator, -drive, damping=LAMBDA, start="keep")
    session.advance(0.3)
    turned = -problem.solution + expm(-problem.f * 0.3) @ (problem.mean(0.4, problem.x0) + problem.solution)
    np.testing.assert_allclose(session.read().value.numpy(), problem.copies(turned), rtol=1e-8)


def test_the_same_seed_and_events_give_the_same_bits_and_another_seed_does_not(daemon):
    def readings(seed):
        with connect(daemon("--clock", "stepped", "--seed", str(seed)).address) as spu, spu.session() as session:
            problem, found = Problem(), []
            for kind in ("rows", "dense"):
                session.program(problem.operator(kind), problem.copies(problem.b), damping=LAMBDA, noise=KAPPA)
                for step, window in ((0.5, 0.0), (2.0, 1.5), (0.1, 0.1)):
                    session.advance(step)
                    found.append(session.read(window=window).value)
            return found

    first, second, other = readings(1), readings(1), readings(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
