import copy

import pytest
import torch

from host_client.optimizers import NGDCG, NGDWoodbury
from tests.cases import Problem
from tests.host_client.optimizers.training import flat, train


def test_it_takes_the_steps_of_the_exact_natural_gradient(problem: Problem) -> None:
    other = copy.deepcopy(problem)
    optimizer = NGDCG(problem.model, problem.criterion, lr=0.3, damping=0.01, momentum=0.5, tolerance=1e-6)
    train(problem, optimizer, 5)
    train(other, NGDWoodbury(other.model, other.criterion, lr=0.3, damping=0.01, momentum=0.5), 5)
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=1e-4, atol=1e-5)
    assert optimizer.counts["not converged"] == 0


def test_the_first_iteration_goes_along_the_gradient_and_is_told_not_to_suffice(problem: Problem) -> None:
    optimizer = NGDCG(problem.model, problem.criterion, lr=0.3, damping=0.01, iterations=1)
    before = flat(problem.model)
    problem.criterion(problem.model(problem.inputs), problem.targets).backward()
    gradient = torch.cat([p.grad.flatten() for p in problem.model.parameters() if p.grad is not None])
    optimizer.step()
    step = flat(problem.model) - before
    assert torch.cosine_similarity(step, -gradient, dim=0) > 0.99999
    assert optimizer.last_solution is not None
    assert optimizer.last_solution.iterations == 1
    assert optimizer.last_solution.residual > 1e-5
    assert optimizer.counts["not converged"] == 1


def test_a_warm_start_goes_on_from_the_last_solution_also_after_a_checkpoint(problem: Problem) -> None:
    def make(of: Problem) -> NGDCG:
        return NGDCG(of.model, of.criterion, lr=1e-6, damping=0.01, iterations=3, warm_start=True)

    optimizer = make(problem)
    train(problem, optimizer, 1)
    assert optimizer.last_solution is not None
    cold = optimizer.last_solution
    train(problem, optimizer, 3)
    resumed = copy.deepcopy(problem)
    other = make(resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(problem, optimizer, 1)
    train(resumed, other, 1)
    assert optimizer.last_solution.residual < 0.3 * cold.residual
    assert optimizer.last_solution.products == 4
    assert torch.equal(flat(resumed.model), flat(problem.model))


@pytest.mark.parametrize(("name", "value"), [("iterations", 0), ("iterations", 1.5), ("tolerance", 0.0)])
def test_a_hyperparameter_out_of_its_range_is_named(problem: Problem, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Invalid {name}: {value}"):
        NGDCG(problem.model, problem.criterion, lr=1.0, damping=0.1, **{name: value})  # type: ignore[arg-type]
