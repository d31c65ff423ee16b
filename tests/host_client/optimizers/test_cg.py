import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host_client.curvature import Capture
from host_client.optimizers.solvers import conjugate_gradients, solve_dense
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
    found = conjugate_gradients(operator.curvature, drive, damping=damping, tolerance=1e-10, most=3 * (rows + 2))
    expected = solve_dense(operator, drive, damping)
    assert found.residual <= 1e-10
    assert (found.x - expected).norm() <= 1e-8 * (1 + 1 / damping) * expected.norm()
    true = (operator.curvature(found.x) + damping * found.x - drive).norm() / drive.norm()
    assert true <= 1e-8
    assert found.products == found.iterations


@pytest.mark.parametrize("case", CASES[:6], ids=lambda case: case.name)
def test_it_solves_captured_curvatures(case: Case) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    problem.criterion(problem.model(problem.inputs), problem.targets)
    drive = torch.randn(capture.operator.parameters, dtype=torch.float64)
    found = conjugate_gradients(capture.operator.curvature, drive, damping=0.01, tolerance=1e-10, most=2000)
    expected = solve_dense(capture.operator, drive, 0.01)
    assert (found.x - expected).norm() < 1e-7 * expected.norm()


def test_it_stops_at_the_tolerance_or_at_the_most_iterations_and_says_which() -> None:
    operator, drive = system(40, 60, 0)
    free = conjugate_gradients(operator.curvature, drive, damping=0.1, tolerance=1e-3, most=1000)
    assert free.residual <= 1e-3
    before = conjugate_gradients(operator.curvature, drive, damping=0.1, tolerance=1e-3, most=free.iterations - 1)
    assert before.residual > 1e-3
    assert before.iterations == free.iterations - 1


def test_more_iterations_bring_it_nearer_in_the_norm_that_it_minimises() -> None:
    operator, drive = system(40, 60, 1)
    exact = solve_dense(operator, drive, 0.1)

    def energy(most: int) -> float:
        error = conjugate_gradients(operator.curvature, drive, damping=0.1, tolerance=0.0, most=most).x - exact
        return float(error @ operator.curvature(error) + 0.1 * error @ error)

    errors = [energy(most) for most in (0, 1, 2, 5, 10, 20)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_it_starts_from_an_estimate() -> None:
    operator, drive = system(40, 60, 2)
    exact = solve_dense(operator, drive, 0.1)
    near = exact + 1e-4 * torch.randn(60, dtype=torch.float64)
    cold = conjugate_gradients(operator.curvature, drive, damping=0.1, tolerance=1e-6, most=1000)
    warm = conjugate_gradients(operator.curvature, drive, damping=0.1, tolerance=1e-6, most=1000, start=near)
    assert warm.iterations < cold.iterations
    assert (warm.x - exact).norm() < 1e-4 * exact.norm()
    assert warm.products == warm.iterations + 1
    at_it = conjugate_gradients(operator.curvature, drive, damping=0.1, tolerance=1e-6, most=1000, start=exact)
    assert at_it.iterations == 0
    assert torch.equal(at_it.x, exact)


def test_a_start_farther_away_than_nothing_is_not_taken() -> None:
    operator, drive = system(40, 60, 3)
    far = 100 * torch.randn(60, dtype=torch.float64)
    cold = conjugate_gradients(operator.curvature, drive, damping=0.1, tolerance=1e-6, most=7)
    assert torch.equal(
        conjugate_gradients(operator.curvature, drive, damping=0.1, tolerance=1e-6, most=7, start=far).x, cold.x
    )


def test_nothing_to_solve_takes_nothing() -> None:
    operator, drive = system(3, 5, 0)
    for start in (None, torch.ones(5, dtype=torch.float64)):
        found = conjugate_gradients(
            operator.curvature, torch.zeros_like(drive), damping=0.1, tolerance=1e-6, most=9, start=start
        )
        assert (found.iterations, found.residual, float(found.x.norm())) == (0, 0.0, 0.0)


def test_without_damping_it_ends_in_the_range_of_the_curvature() -> None:
    operator, drive = system(3, 8, 0)
    inside = operator.curvature(drive)
    found = conjugate_gradients(operator.curvature, inside, damping=0.0, tolerance=1e-8, most=50)
    assert found.residual <= 1e-8
    nowhere = conjugate_gradients(lambda v: torch.zeros_like(v), drive, damping=0.0, tolerance=1e-8, most=50)
    assert nowhere.iterations == 0
    assert nowhere.residual == pytest.approx(1.0)


def test_what_is_not_finite_is_refused() -> None:
    operator, drive = system(3, 5, 0)
    with pytest.raises(FloatingPointError, match="a product with the curvature"):
        conjugate_gradients(lambda v: v / 0, drive, damping=0.1, tolerance=1e-6, most=9)
    drive[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the drive holds values that are not finite"):
        conjugate_gradients(operator.curvature, drive, damping=0.1, tolerance=1e-6, most=9)


def test_vectors_stay_in_the_dtype_of_the_drive_and_the_arguments_as_they_were() -> None:
    operator, drive = system(8, 12, 0, torch.float32)
    kept, start = drive.clone(), torch.zeros(12)
    found = conjugate_gradients(operator.curvature, drive, damping=0.1, tolerance=1e-5, most=50, start=start)
    assert found.x.dtype == torch.float32
    assert torch.equal(drive, kept)
    assert torch.equal(start, torch.zeros(12))
