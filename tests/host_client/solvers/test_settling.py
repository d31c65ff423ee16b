"""The time that a device needs is a bound, and a close one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from host_client import Dense, Rows, Session, settling_time
from spu_link.operators import Operator
from tests.profiles import examples


def missed(f: Tensor, drive: Tensor, damping: float, start: Tensor, time: float) -> float:
    """The fraction of the quadratic model's decrease that a reading misses, from eigenvectors."""
    values, vectors = torch.linalg.eigh(f)
    rates = values.clamp_min(0.0) + damping
    solution = vectors.T @ drive / rates
    difference = (vectors.T @ start - solution) * torch.exp(-rates * time)
    return float((rates * difference**2).sum() / (rates * solution**2).sum())


def problem(seed: int, m: int, decades: float) -> tuple[Operator, Tensor, Tensor]:
    """A factor of m rows over 40 cells with a spectrum over so many decades, a drive and a start."""
    generator = torch.Generator().manual_seed(seed)
    a, drive, start = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((m, 40), (40,), (40,)))
    return Rows(a * torch.logspace(0, -decades / 2, m, dtype=torch.float64)[:, None]), drive, start


@settings(max_examples=examples(100))
@given(
    seed=st.integers(0, 10_000),
    m=st.sampled_from([1, 5, 39, 60]),
    decades=st.floats(0.0, 8.0),
    damping=st.floats(-6.0, 2.0).map(lambda power: 10.0**power),
    lost=st.floats(-4.0, -0.1).map(lambda power: 10.0**power),
    own_start=st.booleans(),
    steps=st.integers(1, 40),
)
def test_a_reading_never_misses_more_than_asked_for(
    seed: int, m: int, decades: float, damping: float, lost: float, own_start: bool, steps: int
) -> None:
    operator, drive, start = problem(seed, m, decades)
    x = start if own_start else drive
    time = settling_time(operator, drive, damping, start if own_start else None, lost=lost, max_steps=steps)
    assert missed(operator.curvature_matrix(), drive, damping, x, time) <= lost * (1.0 + 1e-4)


@settings(max_examples=examples(50))
@given(seed=st.integers(0, 10_000), damping=st.floats(-4.0, 0.0).map(lambda power: 10.0**power))
def test_with_few_eigenvalues_it_is_the_shortest_such_time(seed: int, damping: float) -> None:
    operator, drive, start = problem(seed, 5, 3.0)
    time = settling_time(operator, drive, damping, start)
    assert time > 0.0
    f = operator.curvature_matrix()
    assert missed(f, drive, damping, start, time) <= 0.01 * (1.0 + 1e-4)
    assert missed(f, drive, damping, start, time / 1.25) > 0.01


def test_a_reading_of_a_device_after_this_time_has_all_but_a_hundredth_of_the_decrease(session: Session) -> None:
    operator, drive, _ = problem(0, 30, 4.0)
    time = settling_time(operator, drive, 0.01)
    x = session.solve(operator, drive, damping=0.01, analog_time=time, start="drive").value
    f = operator.curvature_matrix() + 0.01 * torch.eye(40, dtype=torch.float64)
    decrease = 0.5 * drive @ torch.linalg.solve(f, drive)
    assert 0.99 - 1e-6 <= float((drive @ x - 0.5 * x @ f @ x) / decrease) < 0.998


def test_where_the_cells_start_at_the_solution_or_nothing_drives_them_no_time_is_needed() -> None:
    operator, drive, _ = problem(0, 30, 2.0)
    f = operator.curvature_matrix()
    solution = torch.linalg.solve(f + 0.1 * torch.eye(40, dtype=torch.float64), drive)
    assert settling_time(Dense(f), drive, 0.1, solution) == 0.0
    assert settling_time(Dense(f), torch.zeros(40), 0.1) == 0.0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"damping": 0.0}, "damping: 0.0"),
        ({"damping": math.inf}, "damping: inf"),
        ({"lost": 0.0}, "lost: 0.0"),
        ({"max_steps": 0}, "max_steps: 0"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments: dict[str, float], named: str) -> None:
    operator, drive, _ = problem(0, 5, 0.0)
    with pytest.raises(ValueError, match=f"Invalid {named}; .* (more than 0|at least 1)"):
        settling_time(operator, drive, **{"damping": 0.1, **arguments})


@pytest.mark.parametrize(("scale", "entry"), [(math.nan, 1.0), (1.0, math.inf)])
def test_values_that_are_not_finite_are_refused(scale: float, entry: float) -> None:
    with pytest.raises(FloatingPointError, match="the drive, the start or a product with the curvature"):
        settling_time(Rows(torch.full((1, 40), entry)), scale * torch.ones(40), 0.1)
