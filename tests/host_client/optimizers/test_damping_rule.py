import math

import pytest
import torch

from host_client.optimizers.levenberg_marquardt import LevenbergMarquardt, predicted_decrease, ratio
from spu_link.operators import Rows

RULE = LevenbergMarquardt(every=3, grow=2.0, shrink=0.5, threshold=0.75, min=0.01, max=1.0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [(1.0, 0.05), (0.76, 0.05), (0.75, 0.1), (0.25, 0.1), (0.24, 0.2), (-5.0, 0.2), (-math.inf, 0.2), (math.nan, 0.2)],
)
def test_damping_shrinks_above_a_and_grows_below_its_complement(found: float, expected: float) -> None:
    assert RULE.adapt(0.1, found) == pytest.approx(expected)


def test_damping_stays_within_its_limits() -> None:
    assert RULE.adapt(0.015, 1.0) == 0.01
    assert RULE.adapt(0.9, 0.0) == 1.0
    assert RULE.adapt(5.0, 0.5) == 1.0


def test_every_third_step_is_due() -> None:
    assert [step for step in range(10) if RULE.due(step)] == [2, 5, 8]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("every", 0),
        ("every", 1.5),
        ("grow", 1.0),
        ("shrink", 1.0),
        ("shrink", 0.0),
        ("threshold", 0.4),
        ("threshold", 1.0),
        ("min", 0.0),
        ("max", 1e-9),
        ("max", math.nan),
    ],
)
def test_a_field_out_of_its_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Invalid {field}: {value}; it must be"):
        LevenbergMarquardt(**{field: value})  # type: ignore[arg-type]


def test_the_prediction_is_exact_for_a_quadratic_loss() -> None:
    rows = torch.randn(5, 4, dtype=torch.float64)
    optimum, theta, change = (torch.randn(4, dtype=torch.float64) for _ in range(3))

    def loss(at: torch.Tensor) -> float:
        return float(0.5 * (rows @ (at - optimum)).square().sum())

    gradient = rows.T @ rows @ (theta - optimum)
    predicted = predicted_decrease(Rows(rows), gradient, change)
    assert predicted == pytest.approx(loss(theta) - loss(theta + change))


def test_steps_that_cannot_be_judged_count_as_failed_predictions() -> None:
    assert ratio(1.0, 0.5, 0.5) == 1.0
    assert ratio(1.0, 0.5, 0.0) == -math.inf
    assert ratio(1.0, 0.5, -1.0) == -math.inf
    assert ratio(1.0, math.inf, 0.5) == -math.inf
    assert ratio(1.0, math.nan, 0.5) == -math.inf
