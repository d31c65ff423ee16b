import copy

import pytest
import torch
from torch import nn

from host_client import NGD, NGDWoodbury
from host_client.curvature import Capture
from host_client.optimizers.solvers import solve_dense, solve_woodbury
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
