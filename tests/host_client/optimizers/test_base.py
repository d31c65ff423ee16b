"""Behaviour common to all natural-gradient optimizers, as users try it; on the one that needs no device."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from host_client import KFAC, NGD, LineSearch
from host_client.solvers import solve_woodbury
from spu_link.operators import Rows
from tests.cases import Problem
from tests.host_client.optimizers.training import flat, gradient_of, make_ngd, train
from tests.torch_state import count_hooks


def test_a_step_is_along_the_solution(problem: Problem) -> None:
    optimizer = make_ngd(problem)
    before = flat(problem.model)
    problem.loss().backward()
    gradient = gradient_of(problem.model)
    solution, _ = solve_woodbury(optimizer.capture.operator, gradient, 0.1)
    optimizer.step()
    torch.testing.assert_close(flat(problem.model), before - 0.1 * solution.float())


def test_training_brings_the_loss_down(problem: Problem) -> None:
    losses = train(problem, make_ngd(problem, lr=0.5), 20)
    assert losses[-1] < losses[0] / 2


def _usual(problem: Problem, optimizer: NGD) -> None:
    problem.loss().backward()
    optimizer.step()
    optimizer.zero_grad()


def _zeroed_first(problem: Problem, optimizer: NGD) -> None:
    optimizer.zero_grad()
    problem.loss().backward()
    optimizer.step()


def _zeroed_in_between(problem: Problem, optimizer: NGD) -> None:
    loss = problem.criterion(problem.model(problem.inputs), problem.targets)
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()


def _zeroed_by_the_model(problem: Problem, optimizer: NGD) -> None:
    problem.model.zero_grad()
    problem.loss().backward()
    optimizer.step()


def _with_closure(problem: Problem, optimizer: NGD) -> None:
    def closure() -> float:
        optimizer.zero_grad()
        loss = problem.criterion(problem.model(problem.inputs), problem.targets)
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) > 0


def _with_evaluation(problem: Problem, optimizer: NGD) -> None:
    problem.loss().backward()
    with torch.no_grad():
        problem.model(problem.inputs)
    optimizer.step()
    optimizer.zero_grad()


def _with_a_batch_left_out(problem: Problem, optimizer: NGD) -> None:
    problem.loss().backward()
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
def test_every_order_of_the_loop_does_the_same(problem: Problem, loop: Callable[[Problem, NGD], None]) -> None:
    other = copy.deepcopy(problem)
    a, b = make_ngd(problem), make_ngd(other)
    for _ in range(3):
        _usual(problem, a)
        loop(other, b)
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=0, atol=0)


def test_a_closed_optimizer_leaves_the_model_as_it_was_and_takes_no_further_step(problem: Problem) -> None:
    hooks = count_hooks(problem.model)
    optimizer = make_ngd(problem)
    _usual(problem, optimizer)
    optimizer.close()
    optimizer.close()
    assert count_hooks(problem.model) == hooks
    with pytest.raises(RuntimeError, match=r"is closed; make a new one"):
        optimizer.step()


def test_a_step_needs_a_forward_pass(problem: Problem) -> None:
    optimizer = make_ngd(problem)
    with pytest.raises(RuntimeError, match=r"no training forward pass.*model\.train\(\)"):
        optimizer.step()
    problem.model.eval()
    problem.loss().backward()
    with pytest.raises(RuntimeError, match=r"no training forward pass.*model\.train\(\)"):
        optimizer.step()


def test_a_step_needs_a_backward_pass(problem: Problem) -> None:
    optimizer = make_ngd(problem)
    outputs = problem.model(problem.inputs)
    with pytest.raises(RuntimeError, match="call the criterion that the optimizer was given"):
        optimizer.step()
    problem.criterion(outputs, problem.targets)
    with pytest.raises(RuntimeError, match=r"call loss\.backward\(\)"):
        optimizer.step()
    problem.loss().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"call loss\.backward\(\)"):
        optimizer.step()


def test_a_step_needs_a_gradient(problem: Problem) -> None:
    optimizer = make_ngd(problem)
    before = flat(problem.model)
    problem.loss().backward()
    for parameter in problem.model.parameters():
        parameter.grad = None
    with pytest.raises(RuntimeError, match=r"call loss\.backward\(\) before step\(\)"):
        optimizer.step()
    torch.testing.assert_close(flat(problem.model), before, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", [NGD, KFAC])
def test_a_learning_rate_has_to_be_given(problem: Problem, optimizer: Any) -> None:
    with pytest.raises(TypeError, match="'lr'"):
        optimizer(problem.model, problem.criterion, damping=0.1)
    assert not count_hooks(problem.model)


def test_a_curvature_that_is_given_is_taken(problem: Problem) -> None:
    other = copy.deepcopy(problem)
    n = flat(problem.model).numel()
    optimizer = make_ngd(problem, curvature=lambda: Rows(torch.zeros(1, n)))
    assert not count_hooks(problem.model)
    problem.loss().backward()
    optimizer.step()
    plain = torch.optim.SGD(other.model.parameters(), lr=0.1 / 0.1)
    other.loss().backward()
    plain.step()
    torch.testing.assert_close(flat(problem.model), flat(other.model))


def test_frozen_layers_stay_as_they_are(problem: Problem) -> None:
    problem.model[0].requires_grad_(False)
    before = flat(problem.model[0])
    optimizer = make_ngd(problem)
    train(problem, optimizer, 2)
    torch.testing.assert_close(flat(problem.model[0]), before, rtol=0, atol=0)


def test_repr_lists_all_hyperparameters(problem: Problem) -> None:
    shown = repr(make_ngd(problem, curvature="mc", samples=2, curvature_every=5, betas=(0.9, 0.99)))
    for part in ("NGD", "solver: solve_direct", "lr: 0.1", "damping: 0.1", "weight_decay: 0.0"):
        assert part in shown
    for part in ("curvature: mc", "samples: 2", "curvature_every: 5", "betas: (0.9, 0.99)"):
        assert part in shown


def test_repr_shows_what_was_replaced(problem: Problem) -> None:
    optimizer = make_ngd(problem)
    optimizer.solver, optimizer.curvature_every, optimizer.line_search = solve_woodbury, 3, LineSearch(2)
    for part in ("solver: solve_woodbury", "curvature_every: 3", "line_search: LineSearch(halvings=2)"):
        assert part in repr(optimizer)


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
        make_ngd(problem, **options)
    assert not count_hooks(problem.model)


def test_a_second_parameter_group_is_refused(problem: Problem) -> None:
    optimizer = make_ngd(problem)
    with pytest.raises(ValueError, match="NGD takes no further parameter groups"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_an_optimizer_dropped_leaves_the_model(problem: Problem) -> None:
    optimizer = make_ngd(problem, momentum=0.9)
    train(problem, optimizer, 1)
    gone = weakref.ref(optimizer.capture)
    del optimizer
    gc.collect()
    assert gone() is None
    assert not count_hooks(problem.model)
