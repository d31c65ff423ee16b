"""The Lanczos process against eigenvectors."""

from __future__ import annotations

import numpy as np
import pytest

from spu_server.dynamics.lanczos import GAP, FunctionOutput, krylov


def problem(m: int, n: int, seed: int = 0, decades: float = 3.0):
    """A factor with `decades` decades of singular values, squared, and a vector."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(m, n)) * np.logspace(0, -decades / 2, n)
    return a, rng.normal(size=n)


def inverse(s):
    return -1.0 / (0.01 * (0.01 + s))


def exact(gram, p):
    values, vectors = np.linalg.eigh(gram)
    return vectors @ (inverse(values) * (vectors.T @ p))


def target(v):
    """(AᵀA + 0.01 I)⁻¹ v, which is 100 v + Aᵀ k(AAᵀ) A v."""
    return 100.0 * v, float(1e4 * v @ v)


@pytest.mark.parametrize(("m", "n"), [(200, 400), (200, 50), (50, 51)])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
def test_the_change_of_the_output_bounds_its_error(m: int, n: int, tolerance: float) -> None:
    a, v = problem(m, n)
    gram, p = a @ a.T, a @ v
    u, square = target(v)
    found = krylov(gram, p, [FunctionOutput(inverse, square, a @ u)], tolerance=tolerance, max_steps=m)
    output, expected = u + a.T @ found.products[0], u + a.T @ exact(gram, p)
    assert np.linalg.norm(output - expected) <= tolerance * np.linalg.norm(expected)
    assert found.steps <= m


def test_a_looser_tolerance_takes_fewer_steps() -> None:
    a, v = problem(300, 600)
    u, square = target(v)
    steps = [
        krylov(a @ a.T, a @ v, [FunctionOutput(inverse, square, a @ u)], tolerance=tolerance, max_steps=300).steps
        for tolerance in (1e-2, 1e-5, 1e-8)
    ]
    assert steps[0] < steps[1] < steps[2] < 300


def test_several_targets_share_one_process() -> None:
    a, v = problem(100, 150)
    gram, p = a @ a.T, a @ v
    u, square = target(v)
    both = krylov(
        gram,
        p,
        [FunctionOutput(inverse, square, a @ u), FunctionOutput(lambda s: np.exp(-s), 0.0, np.zeros(100))],
        tolerance=1e-10,
        max_steps=100,
    ).products
    values, vectors = np.linalg.eigh(gram)
    np.testing.assert_allclose(a.T @ both[0], a.T @ exact(gram, p), rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(both[1], vectors @ (np.exp(-values) * (vectors.T @ p)), rtol=1e-9, atol=1e-7)


def test_an_eigenvector_takes_one_step() -> None:
    gram = np.diag([3.0, 2.0, 1.0])
    found = krylov(
        gram, np.array([0.0, 5.0, 0.0]), [FunctionOutput(inverse, 0.0, np.zeros(3))], tolerance=1e-8, max_steps=3
    )
    assert found.steps == 1
    np.testing.assert_allclose(found.products[0], [0.0, 5.0 * inverse(2.0), 0.0], rtol=1e-14)


def test_a_low_rank_ends_the_process_early() -> None:
    a, v = problem(60, 4, decades=0.0)
    found = krylov(a @ a.T, a @ v, [FunctionOutput(inverse, 0.0, np.zeros(60))], tolerance=0.0, max_steps=60)
    assert found.steps <= 5
    np.testing.assert_allclose(a.T @ found.products[0], a.T @ exact(a @ a.T, a @ v), rtol=1e-9)


def test_a_vanishing_start_takes_no_step() -> None:
    found = krylov(np.eye(3), np.zeros(3), [FunctionOutput(inverse, 0.0, np.zeros(3))], tolerance=1e-8, max_steps=3)
    assert found.steps == 0
    assert found.products.tolist() == [[0.0, 0.0, 0.0]]


def test_a_process_that_does_not_converge_says_so() -> None:
    a, v = problem(100, 200, decades=8.0)
    u, square = target(v)
    found = krylov(a @ a.T, a @ v, [FunctionOutput(inverse, square, a @ u)], tolerance=1e-12, max_steps=2 * GAP)
    assert found.products is None
    assert found.steps == 2 * GAP


@pytest.mark.parametrize("m", [1, 2, 3])
def test_tiny_matrices(m: int) -> None:
    a, v = problem(m, 5)
    found = krylov(a @ a.T, a @ v, [FunctionOutput(inverse, 0.0, np.zeros(m))], tolerance=1e-8, max_steps=m)
    np.testing.assert_allclose(found.products[0], exact(a @ a.T, a @ v), rtol=1e-10)
