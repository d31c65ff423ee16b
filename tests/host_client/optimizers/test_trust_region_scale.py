import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host_client.optimizers.trust_region import quadratic, scale
from spu_link.operators import Dense, Rows
from tests.profiles import examples


@given(seed=st.integers(0, 10_000), lr=st.floats(1e-3, 1e3), radius=st.floats(1e-6, 1e2))
@settings(max_examples=examples(80))
def test_a_scaled_step_is_within_the_radius_and_no_shorter_than_it_must_be(seed: int, lr: float, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    direction = torch.randn(7, generator=generator, dtype=torch.float64)
    factor = scale(Rows(rows), direction, lr, radius)
    step = factor * lr * direction
    divergence = 0.5 * float(step @ rows.T @ rows @ step)
    assert 0.0 < factor <= 1.0
    assert divergence <= radius * (1 + 1e-9)
    assert factor == 1.0 or divergence == pytest.approx(radius)
    assert scale(Dense(rows.T @ rows), direction, lr, radius) == pytest.approx(factor)


def test_each_parameter_may_have_a_learning_rate_of_its_own() -> None:
    rows, direction = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    lr = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    assert scale(Rows(rows), direction, lr, 0.5) == pytest.approx(1 / 5)


def test_a_direction_without_curvature_is_left_as_it_is() -> None:
    rows = torch.tensor([[1.0, 0.0]])
    assert scale(Rows(rows), torch.tensor([0.0, 1e9]), 1.0, 1e-6) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_direction_that_no_factor_can_save_is_refused(value: float) -> None:
    with pytest.raises(FloatingPointError, match="no trust region can bound it"):
        scale(Rows(torch.ones(1, 2)), torch.tensor([value, 0.0]), 1.0, 0.1)


def test_the_quadratic_form_is_that_of_the_curvature() -> None:
    rows, v = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert quadratic(Rows(rows), v) == pytest.approx(float(v @ rows.T @ rows @ v))
