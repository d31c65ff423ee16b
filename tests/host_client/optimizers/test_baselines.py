import copy

import pytest
import torch
from torch import nn

from host_client import NGD, NGDWoodbury
from host_client.curvature import Capture
from host_client.optimizers.solvers import solve_dense, solve_woodbury
from host_client.optimizers.solvers.direct import solve_direct
from spu_link.operators import Rows
from tests.cases import CASES, Case, Problem
from tests.host_client.optimizers.training import flat, train


@pytest.mark.parametrize("damping", [1e-6, 0.01, 10.0])
@pytest.mark.parametrize("case", CASES[:10], ids=lambda case: case.name)
def test_parameter_space_and_sample_space_agree(case: Case, damping: float) -> None:
    problem = case.problem()
    capture = Capture(problem.model, problem.criterion)
    problem.criterion(problem.model(problem.inputs), problem.targets)
    drive = torch.randn(capture.operator.parameters, dtype=torch.float64)
    dense = solve_dense(capture.operator, drive, damping)
    difference = solve_woodbury(capture.operator, drive, damping) - dense
    assert difference.norm() < 1e-9 * dense.norm()
    residual = capture.operator.curvature(dense) + damping * dense - drive
    assert residual.norm() < 1e-9 * drive.norm()


def test_float32_operators_are_solved_in_float64(problem: Problem) -> None:
    capture = Capture(problem.model, problem.criterion)
    problem.criterion(problem.model(problem.inputs), problem.targets)
    drive = torch.randn(capture.operator.parameters)
    found = solve_woodbury(capture.operator, drive, 1e-4)
    torch.testing.assert_close(found, solve_dense(capture.operator, drive, 1e-4), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("damping", [1e-6, 1e-8, 1e-10, 1e-12])
def test_more_rows_than_parameters_are_solved_to_the_root_of_the_condition_number(damping: float) -> None:
    m, n, generator = 400, 97, torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(k, n, generator=generator, dtype=torch.float64))[0] for k in (m, n))
    a = (left * torch.logspace(0, -8, n, dtype=torch.float64)) @ right.T
    drive = torch.randn(n, generator=generator, dtype=torch.float64)
    _, s, right = torch.linalg.svd(a, full_matrices=False)
    expected = right.T @ ((right @ drive) / (s**2 + damping))
    for solve in (solve_woodbury, solve_direct):
        error = (solve(Rows(a), drive, damping) - expected).norm() / expected.norm()
        assert error <= n * torch.finfo(torch.float64).eps * damping**-0.5


def test_a_great_many_rows_are_solved_without_a_matrix_of_their_number() -> None:
    m, n = 100_000, 7  # 80 GB
    a, drive = torch.randn(m, n, dtype=torch.float64) / m**0.5, torch.randn(n, dtype=torch.float64)
    expected = torch.linalg.solve(a.T @ a + 0.01 * torch.eye(n, dtype=torch.float64), drive)
    torch.testing.assert_close(solve_woodbury(Rows(a), drive, 0.01), expected, rtol=1e-11, atol=1e-13)


def test_both_baselines_take_the_same_steps(problem: Problem) -> None:
    other = copy.deepcopy(problem)
    train(problem, NGD(problem.model, problem.criterion, lr=0.3, damping=0.01, momentum=0.5), 5)
    train(other, NGDWoodbury(other.model, other.criterion, lr=0.3, damping=0.01, momentum=0.5), 5)
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=1e-5, atol=1e-6)


def test_a_matrix_too_large_is_refused_before_anything_is_done() -> None:
    model = nn.Linear(2000, 10)
    with pytest.raises(ValueError, match=r"20010 parameters in full takes 2\.98 GiB.*limit is 1 GiB.*use NGDWoodbury"):
        NGD(model, nn.CrossEntropyLoss(), lr=0.1, damping=0.1)
    assert not model._forward_hooks


@pytest.mark.parametrize("optimizer", [NGD, NGDWoodbury])
def test_a_solve_without_damping_is_refused_later_too(
    problem: Problem, optimizer: type[NGD] | type[NGDWoodbury]
) -> None:
    one = optimizer(problem.model, problem.criterion, lr=0.1, damping=0.1)
    one.hyperparameters["damping"] = 0.0
    before = flat(problem.model)
    with pytest.raises(ValueError, match=r"Invalid damping: 0\.0"):
        train(problem, one, 1)
    torch.testing.assert_close(flat(problem.model), before, rtol=0, atol=0)
