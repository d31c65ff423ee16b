import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host_client.curvature import Capture
from host_client.solvers import ConjugateGradients, solve_dense
from spu_link.operators import Dense, Operator, Rows
from tests.cases import CASES, Case
from tests.profiles import examples


def system(rows: int, n: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Rows, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        Rows(torch.randn(rows, n, generator=generator, dtype=dtype)),
        torch.randn(n, generator=generator, dtype=dtype),
    )


@given(
    rows=st.integers(1, 12),
    n=st.integers(1, 20),
    seed=st.integers(0, 10_000),
    damping=st.floats(1e-3, 10.0),
    dense=st.booleans(),
)
@settings(max_examples=examples(60))
def test_it_finds_the_dense_solution_in_no_more_iterations_than_rows_and_one(
    rows: int, n: int, seed: int, damping: float, dense: bool
) -> None:
    factor, drive = system(rows, n, seed)
    operator: Operator = Dense(factor.dense().T @ factor.dense()) if dense else factor
    # F + λI has at most one more eigenvalue than F has rows; rounding takes a few iterations more.
    x, info = ConjugateGradients(3 * (rows + 2), 1e-10)(operator, drive, damping)
    expected, _ = solve_dense(operator, drive, damping)
    assert info["residual"] <= 1e-10
    assert info["converged"]
    assert (x - expected).norm() <= 1e-8 * (1 + 1 / damping) * expected.norm()
    true = (operator.curvature(x) + damping * x - drive).norm() / drive.norm()
    assert true <= 1e-8


@pytest.mark.parametrize("case", CASES[:6], ids=lambda case: case.name)
def test_it_solves_captured_curvatures(case: Case) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    problem.criterion(problem.model(problem.inputs), problem.targets)
    drive = torch.randn(capture.operator.parameters, dtype=torch.float64)
    x, _ = ConjugateGradients(iterations=2000, tolerance=1e-10)(capture.operator, drive, 0.01)
    expected, _ = solve_dense(capture.operator, drive, 0.01)
    assert (x - expected).norm() < 1e-7 * expected.norm()


def test_it_stops_at_the_tolerance_or_at_the_most_iterations_and_says_which() -> None:
    operator, drive = system(40, 60, 0)
    _, free = ConjugateGradients(iterations=1000, tolerance=1e-3)(operator, drive, 0.1)
    assert free["residual"] <= 1e-3
    assert free["converged"]
    _, before = ConjugateGradients(free["iterations"] - 1, tolerance=1e-3)(operator, drive, 0.1)
    assert before["residual"] > 1e-3
    assert not before["converged"]
    assert before["iterations"] == free["iterations"] - 1


def test_more_iterations_bring_it_nearer_in_the_norm_that_it_minimises() -> None:
    operator, drive = system(40, 60, 1)
    exact, _ = solve_dense(operator, drive, 0.1)

    def energy(x: torch.Tensor) -> float:
        error = x - exact
        return float(error @ operator.curvature(error) + 0.1 * error @ error)

    found = [ConjugateGradients(iterations, 1e-30)(operator, drive, 0.1)[0] for iterations in (1, 2, 5, 10, 20)]
    errors = [energy(x) for x in (torch.zeros_like(drive), *found)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_nothing_to_solve_takes_nothing() -> None:
    operator, drive = system(3, 5, 0)
    x, info = ConjugateGradients()(operator, torch.zeros_like(drive), 0.1)
    assert not x.any()
    assert info == {"iterations": 0, "residual": 0.0, "converged": True}


def test_without_damping_it_ends_in_the_range_of_the_curvature() -> None:
    operator, drive = system(3, 8, 0)
    _, found = ConjugateGradients(50, 1e-8)(operator, operator.curvature(drive), 0.0)
    assert found["residual"] <= 1e-8
    _, nowhere = ConjugateGradients(50, 1e-8)(torch.zeros_like, drive, 0.0)
    assert nowhere == {"iterations": 0, "residual": pytest.approx(1.0), "converged": False}


def test_what_is_not_finite_is_refused() -> None:
    operator, drive = system(3, 5, 0)
    with pytest.raises(FloatingPointError, match="a product with the curvature"):
        ConjugateGradients()(lambda v: v / 0, drive, 0.1)
    drive[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the drive holds values that are not finite"):
        ConjugateGradients()(operator, drive, 0.1)


def test_vectors_stay_in_the_dtype_of_the_drive_and_the_arguments_as_they_were() -> None:
    operator, drive = system(8, 12, 0, torch.float32)
    before = drive.clone()
    x, _ = ConjugateGradients()(operator, drive, 0.1)
    assert x.dtype == torch.float32
    assert torch.equal(drive, before)


@pytest.mark.parametrize(("name", "value"), [("iterations", 0), ("iterations", 1.5), ("tolerance", 0.0)])
def test_an_option_out_of_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Invalid {name}: {value}"):
        ConjugateGradients(**{name: value})  # type: ignore[arg-type]


def test_it_prints_compares_and_pickles() -> None:
    solver = ConjugateGradients(iterations=50)
    assert repr(solver) == "ConjugateGradients(iterations=50, tolerance=1e-05)"
    assert pickle.loads(pickle.dumps(solver)) == solver != ConjugateGradients()
