"""The self-scaled Broyden method: its update, and minima that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from spu_lab.studies.broyden import SelfScaledBroyden, Vector, update_inverse


def rosenbrock(x: Vector) -> tuple[float, Vector]:
    return float(optimize.rosen(x)), optimize.rosen_der(x)


def steps_to(function: SelfScaledBroyden, minimum: Vector, limit: int) -> int:
    """Return the number of steps until the distance to the minimum is below 1e-6."""
    for step in range(limit):
        if np.linalg.norm(function.x - minimum) < 1e-6:
            return step
        function.step()
    return limit


@pytest.mark.parametrize("scaled", [True, False], ids=("scaled", "BFGS"))
def test_a_quadratic_is_minimised_in_a_few_times_as_many_steps_as_it_has_coordinates(scaled: bool) -> None:
    generator = np.random.default_rng(0)
    basis, _ = np.linalg.qr(generator.standard_normal((10, 10)))
    matrix, minimum = basis @ np.diag(np.logspace(0, 4, 10)) @ basis.T, generator.standard_normal(10)

    def quadratic(x: Vector) -> tuple[float, Vector]:
        gradient = matrix @ (x - minimum)
        return 0.5 * float((x - minimum) @ gradient), gradient

    assert steps_to(SelfScaledBroyden(quadratic, np.zeros(10), scaled=scaled), minimum, 100) < 60


@pytest.mark.parametrize("scaled", [True, False], ids=("scaled", "BFGS"))
def test_it_finds_the_minimum_of_rosenbrocks_function(scaled: bool) -> None:
    method = SelfScaledBroyden(rosenbrock, np.array([-1.2, 1.0]), scaled=scaled)
    values = [method.step() for _ in range(100)]
    assert values == sorted(values, reverse=True)
    assert method.x == pytest.approx([1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("curvature", [None, 0.05, 0.6, 3.0])
def test_the_next_inverse_maps_the_change_of_the_gradient_to_the_step_and_stays_positive(
    curvature: float | None,
) -> None:
    # With H = I, sᵀH⁻¹s is sᵀs; the three values are scaled copies of it: b below, near and above 1.
    s, y = np.array([0.3, -0.2, 0.5]), np.array([0.4, 0.1, 0.6])
    inverse = np.eye(3) if curvature is None else (s @ s / curvature) * np.eye(3)
    updated = update_inverse(inverse, s, y, curvature)
    assert updated @ y == pytest.approx(s)
    assert updated == pytest.approx(updated.T)
    assert np.linalg.eigvalsh(updated).min() > 0.0


def test_without_scaling_it_is_the_update_of_scipy() -> None:
    generator = np.random.default_rng(1)
    inverse, theirs = np.eye(5), optimize.BFGS(init_scale=1.0)
    theirs.initialize(5, "inv_hess")
    for _ in range(4):
        s = generator.standard_normal(5)
        y = s + 0.3 * generator.standard_normal(5)
        inverse = update_inverse(inverse, s, y, None)
        theirs.update(s, y)
    assert inverse == pytest.approx(theirs.get_matrix())


def test_coefficients_are_those_worked_out_by_hand() -> None:
    # H = I, s = (1, 0), y = (2, 1): yᵀs = 2, b = 1/2, h = 5/2, a = 1/4; ρ = min(1, 2.5 (1 − √0.2)) = 1, so that θ is
    # max(0, min(1, 1)) = 1, φ = 0, σ = 5/4, τ = min(1, 2) min(4/5, 1) = 4/5.
    updated = update_inverse(np.eye(2), np.array([1.0, 0.0]), np.array([2.0, 1.0]), 1.0)
    kept = np.eye(2) - np.outer([2.0, 1.0], [2.0, 1.0]) / 5.0
    assert updated == pytest.approx(kept / 0.8 + np.diag([0.5, 0.0]))


def test_where_no_step_lowers_the_value_it_stays() -> None:
    method = SelfScaledBroyden(rosenbrock, np.array([1.0, 1.0]))
    assert [method.step() for _ in range(3)] == [0.0, 0.0, 0.0]
    assert method.x == pytest.approx([1.0, 1.0])
