"""What all natural-gradient optimizers share, as users try it; on the one that needs no device."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from host_client import KFAC, NGD, NGDCG, NGDWoodbury
from host_client.optimizers.solvers import solve_woodbury
from spu_link.operators import Rows
from tests.cases import Problem
from tests.host_client.optimizers.training import flat, train


def _optimizer(problem: Problem, **options: Any) -> NGDWoodbury:
    return NGDWoodbury(problem.model, problem.criterion, **{"lr": 0.1, "damping": 0.1, **options})


def _backward(problem: Problem) -> None:
    problem.criterion(problem.model(problem.inputs), problem.targets).backward()


def test_a_step_goes_along_the_solution(problem: Problem) -> None:
    optimizer = _optimizer(problem)
    before = flat(problem.model)
    _backward(problem)
    gradient = torch.cat([p.grad.flatten() for p in problem.model.parameters() if p.grad is not None])
    solution = solve_woodbury(optimizer.capture.operator, gradient, 0.1)
    optimizer.step()
    torch.testing.assert_close(flat(problem.model), before - 0.1 * solution.float())


def test_training_brings_the_loss_down(problem: Problem) -> None:
    losses = train(problem, _optimizer(problem, lr=0.5), 20)
    assert losses[-1] < losses[0] / 2


def _usual(problem: Problem, optimizer: NGDWoodbury) -> None:
    _backward(problem)
    optimizer.step()
    optimizer.zero_grad()


def _zeroed_first(problem: Problem, optimizer: NGDWoodbury) -> None:
    optimizer.zero_grad()
    _backward(problem)
    optimizer.step()


def _zeroed_in_between(problem: Problem, optimizer: NGDWoodbury) -> None:
    loss = problem.criterion(problem.model(problem.inputs), problem.targets)
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()


def _zeroed_by_the_model(problem: Problem, optimizer: NGDWoodbury) -> None:
    problem.model.zero_grad()
    _backward(problem)
    optimizer.step()


def _with_closure(problem: Problem, optimizer: NGDWoodbury) -> None:
    def closure() -> float:
        optimizer.zero_grad()
        loss = problem.criterion(problem.model(problem.inputs), problem.targets)
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) > 0


def _with_evaluation(problem: Problem, optimizer: NGDWoodbury) -> None:
    _backward(problem)
    with torch.no_grad():
        problem.model(problem.inputs)
    optimizer.step()
    optimizer.zero_grad()


def _with_a_batch_left_out(problem: Problem, optimizer: NGDWoodbury) -> None:
    _backward(problem)
    optimizer.zero_grad()
    problem.model(problem.inputs)
    _usual(problem, optimizer)


@pytest.mark.parametrize(
    "loop",
    [
        _zeroed_first,
        _zeroed_in_between,
        _zeroed_by_the_model,
        _with_closure,
        _with_evaluation,
        _with_a_batch_left_out,
    ],
)
def test_every_order_of_the_loop_does_the_same(problem: Problem, loop: Callable[[Problem, NGDWoodbury], None]) -> None:
    other = copy.deepcopy(problem)
    a, b = _optimizer(problem), _optimizer(other)
    for _ in range(3):
        _usual(problem, a)
        loop(other, b)
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=0, atol=0)


def test_a_step_needs_a_forward_pass(problem: Problem) -> None:
    optimizer = _optimizer(problem)
    with pytest.raises(RuntimeError, match=r"no training forward pass.*model\.train\(\)"):
        optimizer.step()
    problem.model.eval()
    _backward(problem)
    with pytest.raises(RuntimeError, match=r"no training forward pass.*model\.train\(\)"):
        optimizer.step()


def test_a_step_needs_a_backward_pass(problem: Problem) -> None:
    optimizer = _optimizer(problem)
    outputs = problem.model(problem.inputs)
    with pytest.raises(RuntimeError, match="call the criterion that the optimizer was given"):
        optimizer.step()
    problem.criterion(outputs, problem.targets)
    with pytest.raises(RuntimeError, match=r"call loss\.backward\(\)"):
        optimizer.step()
    _backward(problem)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"call loss\.backward\(\)"):
        optimizer.step()


def test_a_step_needs_a_gradient(problem: Problem) -> None:
    optimizer = _optimizer(problem)
    before = flat(problem.model)
    _backward(problem)
    for parameter in problem.model.parameters():
        parameter.grad = None
    with pytest.raises(RuntimeError, match=r"call loss\.backward\(\) before step\(\)"):
        optimizer.step()
    torch.testing.assert_close(flat(problem.model), before, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", [NGD, NGDCG, NGDWoodbury, KFAC])
def test_a_learning_rate_has_to_be_given(problem: Problem, optimizer: Any) -> None:
    with pytest.raises(TypeError, match="'lr'"):
        optimizer(problem.model, problem.criterion, damping=0.1)
    assert not problem.model._forward_hooks


def test_gradients_of_two_batches_have_the_curvature_of_both(problem: Problem) -> None:
    """Half a batch twice, each with half its loss, is the whole batch."""
    other = copy.deepcopy(problem)
    a, b = _optimizer(problem), _optimizer(other)
    for inputs, targets in zip(problem.inputs.chunk(2), problem.targets.chunk(2), strict=True):
        (problem.criterion(problem.model(inputs), targets) / 2).backward()
    a.step()
    _backward(other)
    b.step()
    torch.testing.assert_close(flat(problem.model), flat(other.model))


def test_a_curvature_that_is_given_is_taken(problem: Problem) -> None:
    other = copy.deepcopy(problem)
    n = flat(problem.model).numel()
    optimizer = _optimizer(problem, curvature=lambda: Rows(torch.zeros(1, n)))
    assert not problem.model._forward_hooks
    _backward(problem)
    optimizer.step()
    plain = torch.optim.SGD(other.model.parameters(), lr=0.1 / 0.1)
    _backward(other)
    plain.step()
    torch.testing.assert_close(flat(problem.model), flat(other.model))


def test_learning_rate_schedulers_work(problem: Problem) -> None:
    optimizer = _optimizer(problem, lr=0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    other = copy.deepcopy(problem)
    plain = _optimizer(other, lr=0.4)
    for lr in (0.4, 0.2, 0.1):
        plain.hyperparameters["lr"] = lr
        train(problem, optimizer, 1)
        scheduler.step()
        train(other, plain, 1)
    torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=0, atol=0)


def test_frozen_layers_stay_as_they_are(problem: Problem) -> None:
    problem.model[0].requires_grad_(False)
    before = flat(problem.model[0])
    optimizer = _optimizer(problem)
    train(problem, optimizer, 2)
    torch.testing.assert_close(flat(problem.model[0]), before, rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_state_dict_resumes_where_it_was(problem: Problem, momentum: float) -> None:
    optimizer = _optimizer(problem, momentum=momentum)
    train(problem, optimizer, 2)
    other = copy.deepcopy(problem)
    resumed = _optimizer(other, lr=1.0, damping=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(problem, optimizer, 3)
    train(other, resumed, 3)
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=0, atol=0)


def test_repr_lists_all_hyperparameters(problem: Problem) -> None:
    shown = repr(_optimizer(problem, momentum=0.5))
    for part in ("NGDWoodbury", "lr: 0.1", "damping: 0.1", "momentum: 0.5"):
        assert part in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "Invalid lr: -1.0"),
        ({"lr": float("nan")}, "Invalid lr: nan"),
        ({"damping": -0.1}, "Invalid damping: -0.1"),
        ({"damping": 0.0}, "Invalid damping: 0.0; a digital solve needs more than 0"),
        ({"momentum": 1.0}, "Invalid momentum: 1.0"),
        ({"momentum": -0.1}, "Invalid momentum: -0.1"),
    ],
)
def test_hyperparameters_out_of_range(problem: Problem, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _optimizer(problem, **options)
    assert not problem.model._forward_hooks


def test_a_second_parameter_group_is_refused(problem: Problem) -> None:
    optimizer = _optimizer(problem)
    with pytest.raises(ValueError, match="NGDWoodbury takes no further parameter groups"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_an_optimizer_dropped_leaves_the_model(problem: Problem) -> None:
    optimizer = _optimizer(problem, momentum=0.9)
    train(problem, optimizer, 1)
    gone = weakref.ref(optimizer.capture)
    del optimizer
    gc.collect()
    assert gone() is None
    assert not problem.model._forward_hooks
