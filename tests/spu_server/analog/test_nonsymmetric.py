"""Motion under M = BᵀA + λI, held against matrix exponentials and against small steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.operators import EmbeddingRows, LayerRows, LinearRows, Rows
from spu_link.program import Program
from spu_server.analog import nonsymmetric
from spu_server.analog.doubling import FactorLaw
from spu_server.analog.nonsymmetric import DenseDrift, FactorDrift, drift_of, grams_of
from spu_server.dynamics import transition_of
from tests.spu_server.dynamics.law import Law, law_by_exponentials, law_of
from tests.statistics import assert_standard_normal, whiten

DAMPING = 0.01
NOISE = 0.3


def factors(mismatch: float, seed: int = 1) -> tuple[LayerRows, LayerRows]:
    """Two arrays of one problem with layers of every form, m = 6, whose elements differ by `mismatch`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    indices = torch.tensor([[0, 2], [1, 1], [2, 0]])
    forward = LayerRows(
        [
            LinearRows(normal(3, 4), normal(2, 3, 3), bias=True),
            LinearRows(normal(3, 5, 3), normal(2, 3, 5, 2), bias=False),
            EmbeddingRows(indices, normal(2, 3, 2, 2), embeddings=4),
            Rows(normal(6, 5)),
        ]
    )
    return forward, forward.map(lambda t: t * (1.0 + mismatch * normal(*t.shape)))


def drift_matrix(forward: LayerRows, backward: LayerRows, damping: float = DAMPING) -> np.ndarray:
    n = forward.parameters
    return (backward.dense().T @ forward.dense() + damping * torch.eye(n, dtype=torch.float64)).numpy()


def assert_same(law: Law, expected: Law, relative: float = 1e-10) -> None:
    for name in ("offset", "start", "covariance"):
        found, wanted = getattr(law, name), getattr(expected, name)
        error = np.abs(found - wanted).max() / np.abs(wanted).max()
        assert error < relative, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("duration", [1e-3, 0.7, 50.0])
@pytest.mark.parametrize("mismatch", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("form", ["factor", "dense"])
def test_state_and_integral_follow_the_law_by_matrix_exponentials(form: str, mismatch: float, duration: float) -> None:
    forward, backward = factors(mismatch)
    matrix, draws = drift_matrix(forward, backward), 2 if form == "dense" else 4
    b = torch.linspace(-1.0, 2.0, forward.parameters, dtype=torch.float64)

    def build(drive: Tensor) -> FactorDrift | DenseDrift:
        if form == "dense":
            return DenseDrift(torch.from_numpy(matrix), drive, damping=0.0, noise=NOISE)
        return FactorDrift(forward, backward, drive, damping=DAMPING, noise=NOISE)

    assert_same(law_of(build, b, duration, draws), law_by_exponentials(matrix, b.numpy(), NOISE, duration))


@pytest.mark.parametrize("duration", [0.01, 1.0, 200.0])
def test_equal_arrays_give_the_law_of_the_symmetric_dynamics(duration: float) -> None:
    forward, _ = factors(0.0)
    b = torch.linspace(-1.0, 2.0, forward.parameters, dtype=torch.float64)
    law = law_of(lambda drive: FactorDrift(forward, forward, drive, damping=DAMPING, noise=NOISE), b, duration, 4)
    symmetric = law_of(
        lambda drive: transition_of(Program(forward, drive, damping=DAMPING, noise=NOISE)),  # type: ignore[arg-type]
        b,
        duration,
    )
    assert_same(law, symmetric)


def test_the_state_alone_has_the_same_law_as_with_its_integral() -> None:
    forward, backward = factors(0.1)
    n, duration = forward.parameters, 3.0
    b = torch.ones(n, dtype=torch.float64)
    drift = FactorDrift(forward, backward, b, damping=DAMPING, noise=NOISE)
    expected = law_by_exponentials(drift_matrix(forward, backward), b.numpy(), NOISE, duration)
    zero = torch.zeros(n, dtype=torch.float64)
    mean = drift.step(None, duration, lambda: zero).state
    kicks = []
    for place, e in itertools.product(range(2), torch.eye(n, dtype=torch.float64)):
        source = iter([e if j == place else zero for j in range(2)])
        kicks.append((drift.step(None, duration, lambda source=source: next(source)).state - mean).numpy())  # type: ignore[misc]
    np.testing.assert_allclose(mean.numpy(), expected.offset[:n], rtol=0, atol=1e-10 * np.abs(expected.offset).max())
    covariance = np.stack(kicks, 1) @ np.stack(kicks, 1).T
    np.testing.assert_allclose(covariance, expected.covariance[:n, :n], rtol=0, atol=1e-10 * expected.covariance.max())


def test_without_noise_nothing_is_drawn_and_the_motion_is_the_exponential() -> None:
    forward, backward = factors(0.3)
    matrix = drift_matrix(forward, backward)
    start = torch.linspace(0.0, 1.0, forward.parameters, dtype=torch.float64)
    drift = FactorDrift(forward, backward, torch.zeros_like(start), damping=DAMPING, noise=0.0)

    def never() -> Tensor:
        raise AssertionError("noise was drawn")

    found = drift.step(start, 2.5, never).state
    np.testing.assert_allclose(found.numpy(), expm(-2.5 * matrix) @ start.numpy(), rtol=0, atol=1e-12)


def test_drawn_paths_and_fine_euler_maruyama_have_one_law() -> None:
    """2000 paths each; a step of 1e-3 τ biases the law by less than what this test could see."""
    generator = torch.Generator().manual_seed(3)
    forward = Rows(torch.randn(2, 4, generator=generator, dtype=torch.float64))
    backward = Rows(forward.a * (1.0 + 0.5 * torch.randn(2, 4, generator=generator, dtype=torch.float64)))
    matrix = drift_matrix(LayerRows([forward]), LayerRows([backward]), damping=0.3)
    assert np.abs(matrix - matrix.T).max() > 0.3
    b, duration, paths = torch.arange(4.0, dtype=torch.float64), 1.0, 2000
    law = law_by_exponentials(matrix, b.numpy(), NOISE, duration)
    drift = FactorDrift(forward, backward, b, damping=0.3, noise=NOISE)

    def normal() -> Tensor:
        return torch.randn(4, generator=generator, dtype=torch.float64)

    steps = (drift.step(None, duration, normal, integral=True) for _ in range(paths))
    drawn = torch.stack([torch.cat(step) for step in steps])  # type: ignore[arg-type]
    assert_standard_normal(whiten(drawn.numpy(), law.offset, law.covariance))

    random = np.random.default_rng(4)
    x, integral, dt = np.zeros((paths, 4)), np.zeros((paths, 4)), 1e-3
    for _ in range(round(duration / dt)):
        integral += 0.5 * dt * x
        x += -(x @ matrix.T - b.numpy()) * dt + np.sqrt(2.0 * NOISE * dt) * random.standard_normal(x.shape)
        integral += 0.5 * dt * x
    assert_standard_normal(whiten(np.hstack([x, integral]), law.offset, law.covariance))


@pytest.mark.parametrize("form", ["factor", "dense"])
def test_an_unstable_board_grows_exactly_until_it_has_grown_beyond_all_numbers(form: str) -> None:
    forward = Rows(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64))
    backward = Rows(torch.tensor([[-0.5, 0.2, 0.0], [0.1, 1.0, 0.0]], dtype=torch.float64))
    matrix = drift_matrix(LayerRows([forward]), LayerRows([backward]), damping=0.1)
    assert np.linalg.eigvals(matrix).real.min() < -0.3
    start = torch.ones(3, dtype=torch.float64)

    def drift(noise: float) -> FactorDrift | DenseDrift:
        if form == "dense":
            return DenseDrift(torch.from_numpy(matrix), torch.zeros_like(start), damping=0.0, noise=noise)
        return FactorDrift(forward, backward, torch.zeros_like(start), damping=0.1, noise=noise)

    grown = drift(0.0).step(start, 40.0, lambda: start).state
    np.testing.assert_allclose(grown.numpy(), expm(-40.0 * matrix) @ start.numpy(), rtol=1e-10)
    for noise in (0.0, 1.0):
        with pytest.raises(OverflowError, match="beyond all numbers"):
            drift(noise).step(start, 5000.0, lambda: start)


def test_grams_are_those_of_the_explicit_factors() -> None:
    forward, backward = factors(0.5)
    gram, cross = grams_of(forward, backward)
    torch.testing.assert_close(gram, forward.dense() @ forward.dense().T)
    torch.testing.assert_close(cross, forward.dense() @ backward.dense().T)


def test_factors_with_more_rows_than_cells_are_held_in_full() -> None:
    forward, backward = (Rows(torch.randn(5, 3, dtype=torch.float64)) for _ in range(2))
    drift = drift_of(forward, backward, torch.ones(3), damping=0.5, noise=0.0)
    assert isinstance(drift, DenseDrift)
    expected = drift_matrix(LayerRows([forward]), LayerRows([backward]), damping=0.0)
    assert drift.damping == 0.5
    np.testing.assert_allclose(drift.matrix.numpy(), expected, rtol=1e-12)


def test_arrays_of_different_shapes_are_refused() -> None:
    with pytest.raises(InvalidProgram, match="backward"):
        FactorDrift(Rows(torch.ones(2, 3)), Rows(torch.ones(2, 4)), torch.ones(3), damping=0.0, noise=0.0)


def test_a_step_of_no_time_moves_nothing() -> None:
    forward, backward = factors(0.1)
    state = torch.ones(forward.parameters, dtype=torch.float64)
    drift = FactorDrift(forward, backward, state, damping=0.0, noise=1.0)
    step = drift.step(state, 0.0, lambda: state, integral=True)
    assert step.state is state
    assert step.integral is not None
    assert not step.integral.any()


@pytest.mark.parametrize("damping", [DAMPING, 0.5])
@pytest.mark.parametrize("form", ["factor", "dense"])
def test_another_drive_under_the_same_arrays_moves_as_if_they_were_new(form: str, damping: float) -> None:
    forward, backward = factors(0.3)
    ones = torch.ones(forward.parameters, dtype=torch.float64)

    def new(drive: Tensor, damping: float) -> FactorDrift | DenseDrift:
        if form == "dense":
            matrix = torch.from_numpy(drift_matrix(forward, backward, damping=0.0))
            return DenseDrift(matrix, drive, damping=damping, noise=0.0)
        return FactorDrift(forward, backward, drive, damping=damping, noise=0.0)

    first = new(ones, DAMPING)
    first.step(None, 1.0, lambda: ones)
    found = first.under(2.0 * ones, damping=damping, noise=0.0).step(None, 1.0, lambda: ones).state
    assert torch.equal(found, new(2.0 * ones, damping).step(None, 1.0, lambda: ones).state)


def sizes_of_laws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list to which the number of rows of every law in sample space is added."""
    sizes: list[int] = []

    def law(matrix: Tensor, *arguments: object, **options: object) -> FactorLaw:
        sizes.append(len(matrix))
        return FactorLaw(matrix, *arguments, **options)

    monkeypatch.setattr(nonsymmetric, "FactorLaw", law)
    return sizes


@pytest.mark.parametrize("duration", [0.1, 5.0, 500.0])
@pytest.mark.parametrize("mismatch", [1e-3, 0.3])
def test_the_arnoldi_process_gives_what_the_law_gives(
    duration: float, mismatch: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 rows with three decades of eigenvalues; nobody draws noise, so the process serves."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1.5, 300, dtype=torch.float64)[:, None]
    forward = Rows(scales * torch.randn(300, 500, generator=generator, dtype=torch.float64) / 20.0)
    backward = forward.map(lambda a: a * (1.0 + mismatch * torch.randn(a.shape, generator=generator, dtype=a.dtype)))
    b, x = torch.randn(2, 500, generator=generator, dtype=torch.float64).unbind()
    laws = sizes_of_laws(monkeypatch)
    drift = FactorDrift(forward, backward, b, damping=DAMPING, noise=0.0)
    fast = drift.step(x, duration, lambda: b).state
    assert laws
    assert max(laws) <= 100
    monkeypatch.setattr(nonsymmetric, "SMALL", 1000)
    slow = drift.step(x, duration, lambda: b).state
    assert laws[-1] == 300
    assert float((fast - slow).norm() / slow.norm()) < 1e-7


def test_the_arnoldi_process_is_the_limit_of_ever_finer_euler_maruyama(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, as where the process serves; what a step of first order leaves halves with its length."""
    generator = torch.Generator().manual_seed(0)
    forward = Rows(torch.randn(150, 200, generator=generator, dtype=torch.float64) / 20.0)
    backward = forward.map(lambda a: a * (1.0 + 0.3 * torch.randn(a.shape, generator=generator, dtype=a.dtype)))
    b, start = torch.randn(2, 200, generator=generator, dtype=torch.float64).unbind()
    drift = FactorDrift(forward, backward, b, damping=DAMPING, noise=0.0)
    laws = sizes_of_laws(monkeypatch)
    found = drift.step(start, 2.0, lambda: b).state
    assert max(laws) <= 50
    matrix = torch.from_numpy(drift_matrix(LayerRows([forward]), LayerRows([backward])))
    off = []
    for steps in (1000, 2000):
        x = start.clone()
        for _ in range(steps):
            x -= 2.0 / steps * (matrix @ x - b)
        off.append(float((x - found).norm() / found.norm()))
    assert off[1] < 1e-3
    assert 1.98 < off[0] / off[1] < 2.02
