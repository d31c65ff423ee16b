import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host_client.optimizers.trust_region import damped_square, fraction_to_minimum, fraction_within, quadratic
from spu_link.operators import Dense, Operator, Rows
from tests.profiles import examples


def scale(operator: Operator, change: torch.Tensor, damping: float, radius: float) -> float:
    return fraction_within(damped_square(operator, damping, change), radius)


@given(
    seed=st.integers(0, 10_000),
    size=st.floats(1e-3, 1e3),
    damping=st.one_of(st.just(0.0), st.floats(1e-6, 1e2)),
    radius=st.floats(1e-6, 1e2),
)
@settings(max_examples=examples(80))
def test_a_scaled_change_is_within_the_radius_and_no_shorter_than_it_must_be(
    seed: int, size: float, damping: float, radius: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    whole = size * torch.randn(7, generator=generator, dtype=torch.float64)
    factor = scale(Rows(rows), whole, damping, radius)
    change = factor * whole
    length = 0.5 * float(change @ rows.T @ rows @ change + damping * change @ change)
    assert 0.0 < factor <= 1.0
    assert length <= radius * (1 + 1e-9)
    assert factor == 1.0 or length == pytest.approx(radius)
    assert scale(Dense(rows.T @ rows), whole, damping, radius) == pytest.approx(factor)


def test_without_curvature_damping_is_what_bounds() -> None:
    rows, change = torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 10.0])
    assert scale(Rows(rows), change, 0.0, 1e-6) == 1.0
    assert scale(Rows(rows), change, 0.5, 1.0) == pytest.approx(0.2)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_change_that_no_factor_can_save_is_refused(value: float) -> None:
    with pytest.raises(FloatingPointError, match="no trust region can bound it"):
        scale(Rows(torch.ones(1, 2)), torch.tensor([value, 0.0]), 0.1, 0.1)


def test_the_quadratic_form_is_that_of_the_curvature() -> None:
    rows, v = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert quadratic(Rows(rows), v) == pytest.approx(float(v @ rows.T @ rows @ v))


@pytest.mark.parametrize("lr", [0.3, 1.0, 4.0])
def test_a_step_along_the_solution_ends_at_the_minimum_of_the_model_at_most(lr: float) -> None:
    rows, gradient = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    change = -lr * torch.linalg.solve(rows.T @ rows + 0.1 * torch.eye(6, dtype=torch.float64), gradient)
    fraction = fraction_to_minimum(damped_square(Rows(rows), 0.1, change), -float(gradient @ change))
    assert fraction == pytest.approx(min(1.0, 1 / lr))


def test_a_change_uphill_is_not_made_and_none_at_all_is_left_alone() -> None:
    assert fraction_to_minimum(2.0, -1.0) == 0.0
    assert fraction_to_minimum(0.0, 0.0) == 1.0
