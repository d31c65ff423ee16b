import copy
from typing import Any

import pytest
import torch
from torch import nn

from host_client import NGD, ConjugateGradients, make_optimizer
from host_client.curvature import Capture
from host_client.solvers import Solver, solve_dense, solve_direct, solve_woodbury
from spu_link.operators import Dense, Operator, Rows
from tests.cases import CASES, Case, Problem
from tests.host_client.optimizers.training import flat, gradient_of, train
from tests.torch_state import count_hooks


@pytest.mark.parametrize("damping", [1e-6, 0.01, 10.0])
@pytest.mark.parametrize("case", CASES[:10], ids=lambda case: case.name)
def test_parameter_space_and_sample_space_agree(case: Case, damping: float) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    problem.criterion(problem.model(problem.inputs), problem.targets)
    drive = torch.randn(capture.operator.parameters, dtype=torch.float64)
    dense, _ = solve_dense(capture.operator, drive, damping)
    difference = solve_woodbury(capture.operator, drive, damping)[0] - dense
    assert difference.norm() < 1e-9 * dense.norm()
    residual = capture.operator.curvature(dense) + damping * dense - drive
    assert residual.norm() < 1e-9 * drive.norm()


def test_float32_operators_are_solved_in_float64(problem: Problem) -> None:
    capture = Capture(problem.model, problem.criterion)
    problem.criterion(problem.model(problem.inputs), problem.targets)
    drive = torch.randn(capture.operator.parameters)
    found, _ = solve_woodbury(capture.operator, drive, 1e-4)
    torch.testing.assert_close(found, solve_dense(capture.operator, drive, 1e-4)[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("damping", [1e-6, 1e-8, 1e-10, 1e-12])
def test_more_rows_than_parameters_are_solved_to_the_root_of_the_condition_number(damping: float) -> None:
    m, n, generator = 400, 97, torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(k, n, generator=generator, dtype=torch.float64))[0] for k in (m, n))
    a = (left * torch.logspace(0, -8, n, dtype=torch.float64)) @ right.T
    drive = torch.randn(n, generator=generator, dtype=torch.float64)
    _, s, right = torch.linalg.svd(a, full_matrices=False)
    expected = right.T @ ((right @ drive) / (s**2 + damping))
    for solve in (solve_woodbury, solve_direct):
        error = (solve(Rows(a), drive, damping)[0] - expected).norm() / expected.norm()
        assert error <= n * torch.finfo(torch.float64).eps * damping**-0.5


def test_a_great_many_rows_are_solved_without_a_matrix_of_their_number() -> None:
    m, n = 100_000, 7  # 80 GB
    a, drive = torch.randn(m, n, dtype=torch.float64) / m**0.5, torch.randn(n, dtype=torch.float64)
    expected = torch.linalg.solve(a.T @ a + 0.01 * torch.eye(n, dtype=torch.float64), drive)
    torch.testing.assert_close(solve_woodbury(Rows(a), drive, 0.01)[0], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("solver", [solve_woodbury, solve_dense, ConjugateGradients(tolerance=1e-6)])
def test_all_solvers_take_the_same_steps(problem: Problem, solver: Solver) -> None:
    other = copy.deepcopy(problem)
    optimizer = NGD(problem.model, problem.criterion, lr=0.3, damping=0.01, momentum=0.5, solver=solver)
    train(problem, optimizer, 5)
    train(other, NGD(other.model, other.criterion, lr=0.3, damping=0.01, momentum=0.5), 5)
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=1e-4, atol=1e-5)
    assert optimizer.counts["not converged"] == 0


def test_the_first_iteration_is_along_the_gradient_and_is_reported_as_not_converged(problem: Problem) -> None:
    optimizer = NGD(problem.model, problem.criterion, lr=0.3, damping=0.01, solver=ConjugateGradients(iterations=1))
    assert optimizer.last_info == {}
    before = flat(problem.model)
    problem.criterion(problem.model(problem.inputs), problem.targets).backward()
    gradient = gradient_of(problem.model)
    optimizer.step()
    step = flat(problem.model) - before
    assert torch.cosine_similarity(step, -gradient, dim=0) > 0.99999
    assert optimizer.last_info["iterations"] == 1
    assert optimizer.last_info["residual"] > 1e-5
    assert optimizer.counts["not converged"] == 1


def test_a_solver_of_ones_own_solves_without_damping_and_may_report_nothing(problem: Problem) -> None:
    def pseudoinverse(operator: Operator, drive: torch.Tensor, damping: float) -> tuple[torch.Tensor, None]:
        return torch.linalg.pinv(operator.curvature_matrix(), rtol=1e-8, hermitian=True) @ drive.double(), None

    optimizer = NGD(problem.model, problem.criterion, lr=0.3, damping=0.0, solver=pseudoinverse)
    train(problem, optimizer, 2)
    assert optimizer.last_info == {}
    assert "solver: pseudoinverse" in repr(optimizer)


def test_a_solver_that_returns_something_else_is_refused(problem: Problem) -> None:
    solver: Any = lambda operator, drive, damping: drive  # noqa: E731
    optimizer = NGD(problem.model, problem.criterion, lr=0.3, damping=0.0, solver=solver)
    with pytest.raises(TypeError, match=r"Invalid solver: .*; it must return \(x, info\), x of shape \(\d+,\)"):
        train(problem, optimizer, 1)


@pytest.mark.parametrize("solver", ["woodbury", None, ConjugateGradients])
def test_what_is_no_solver_is_refused_before_anything_is_done(problem: Problem, solver: Any) -> None:
    with pytest.raises(TypeError, match=r"Invalid solver: .*, such as solve_woodbury or ConjugateGradients\(\)"):
        NGD(problem.model, problem.criterion, lr=0.1, damping=0.1, solver=solver)
    assert not count_hooks(problem.model)


def test_a_curvature_without_a_factor_is_solved_in_full_unless_a_factor_is_needed(problem: Problem) -> None:
    n = flat(problem.model).numel()
    options: dict[str, Any] = {"lr": 0.3, "damping": 0.1, "curvature": lambda: Dense(torch.eye(n))}
    train(problem, NGD(problem.model, problem.criterion, **options), 1)
    optimizer = make_optimizer("ngd-woodbury", problem.model, problem.criterion, **options)
    with pytest.raises(TypeError, match=r"is Dense, and the Woodbury .* needs a factor .* the solver solve_dense"):
        train(problem, optimizer, 1)


def test_a_matrix_too_large_is_refused_before_anything_is_done() -> None:
    model = nn.Linear(2000, 10)
    with pytest.raises(
        ValueError, match=r"20010 parameters in full takes 2\.98 GiB.*limit is 1 GiB.*use the solver solve_woodbury"
    ):
        NGD(model, nn.CrossEntropyLoss(), lr=0.1, damping=0.1, solver=solve_dense)
    assert not count_hooks(model)


@pytest.mark.parametrize("solver", [solve_dense, solve_direct, solve_woodbury])
def test_a_solve_without_damping_is_refused_later_too(problem: Problem, solver: Solver) -> None:
    one = NGD(problem.model, problem.criterion, lr=0.1, damping=0.1, solver=solver)
    one.hyperparameters["damping"] = 0.0
    before = flat(problem.model)
    with pytest.raises(ValueError, match=r"Invalid damping: 0\.0"):
        train(problem, one, 1)
    torch.testing.assert_close(flat(problem.model), before, rtol=0, atol=0)
