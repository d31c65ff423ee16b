"""Use of a direction: update rules, weight decay, and the update left to an optimizer of torch's."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_client import NGD, TNGD, Session
from host_client.optimizers.update import update
from host_client.solvers import solve_woodbury
from spu_link.operators import Rows
from tests.cases import Problem
from tests.host_client.optimizers.training import flat, gradient_of, make_ngd, same, train
from tests.torch_state import count_hooks


def _no_curvature(problem: Problem, **options: Any) -> NGD:
    """With F = 0 and λ = 1, g̃ is the gradient, and torch's own optimizers can be compared with."""
    n = flat(problem.model).numel()
    return make_ngd(problem, damping=1.0, curvature=lambda: Rows(torch.zeros(1, n)), **options)


def test_betas_of_zero_go_along_the_sign_of_the_natural_gradient(problem: Problem) -> None:
    optimizer = make_ngd(problem, lr=0.01, betas=(0.0, 0.0))
    for _ in range(3):
        before = flat(problem.model)
        problem.loss().backward()
        assert optimizer.capture is not None
        direction = solve_woodbury(optimizer.capture.operator, gradient_of(problem.model), 0.1)[0].float()
        assert (direction.sign() != gradient_of(problem.model).sign()).any()
        optimizer.step()
        large = direction.abs() > 1e-4
        assert large.sum() > 10
        moved = flat(problem.model) - before
        torch.testing.assert_close(moved[large], -0.01 * direction.sign()[large], rtol=1e-3, atol=1e-7)
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({"betas": (0.9, 0.999)}, lambda p: torch.optim.Adam(p, lr=0.1)),
        ({"betas": (0.5, 0.9), "eps": 1e-3}, lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.9), eps=1e-3)),
        ({"betas": (0.9, 0.999), "weight_decay": 0.3}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3)),
        ({"momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    ],
    ids=["adam", "betas and eps", "adamw", "momentum"],
)
def test_without_curvature_the_rules_are_those_of_torch(
    problem: Problem, options: dict[str, Any], plain: Callable[[Any], torch.optim.Optimizer]
) -> None:
    other, start = copy.deepcopy(problem), flat(problem.model)
    train(problem, _no_curvature(problem, **options), 4)
    train(other, plain(other.model.parameters()), 4)
    torch.testing.assert_close(flat(problem.model), flat(other.model))
    assert not torch.allclose(flat(problem.model), start, atol=1e-2)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weight_decay_shrinks_the_parameters_and_nothing_else(problem: Problem, momentum: float) -> None:
    other = copy.deepcopy(problem)
    optimizer = make_ngd(problem, lr=0.1, momentum=momentum, weight_decay=0.5)
    plain = make_ngd(other, lr=0.1, momentum=momentum)
    for _ in range(3):
        nn.utils.vector_to_parameters(flat(problem.model), other.model.parameters())
        before = flat(problem.model)
        train(problem, optimizer, 1)
        train(other, plain, 1)
        torch.testing.assert_close(flat(problem.model), flat(other.model) - 0.1 * 0.5 * before)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_preconditioner_before_sgd_is_natural_gradient_descent(problem: Problem, momentum: float) -> None:
    other = copy.deepcopy(problem)
    train(problem, make_ngd(problem, momentum=momentum), 4)
    preconditioner = make_ngd(other, lr=123.0)
    sgd = torch.optim.SGD(other.model.parameters(), lr=0.1, momentum=momentum)
    for _ in range(4):
        other.loss().backward()
        preconditioner.precondition()
        sgd.step()
        sgd.zero_grad()
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=1e-6, atol=1e-7)
    assert preconditioner.steps == 4


def test_a_session_that_has_not_been_entered_is_recognised(problem: Problem, session: Session) -> None:
    not_entered: Any = session.spu.session()
    with pytest.raises(TypeError, match=r"write `with spu\.session\(\) as session:`"):
        TNGD(problem.model, problem.criterion, not_entered, lr=0.1, damping=0.1, analog_time=1.0)


def test_a_device_preconditions_too(problem: Problem, session: Session) -> None:
    other = copy.deepcopy(problem)
    options: Any = {"damping": 0.1, "curvature_every": 2, "start": "drive"}
    train(problem, TNGD(problem.model, problem.criterion, session, lr=0.1, analog_time=2.0, **options), 4)
    preconditioner = TNGD(other.model, other.criterion, session, lr=0.1, analog_time=2.0, **options)
    sgd = torch.optim.SGD(other.model.parameters(), lr=0.1)
    sgd.register_step_pre_hook(lambda *_: preconditioner.precondition())
    train(other, sgd, 4)
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=1e-5, atol=1e-6)


def test_a_preconditioner_hooked_to_adamw_is_the_optimizers_own_rule(problem: Problem) -> None:
    other, options = copy.deepcopy(problem), {"betas": (0.9, 0.99), "weight_decay": 0.1}
    train(problem, make_ngd(problem, **options), 4)
    preconditioner = make_ngd(other)
    adamw = torch.optim.AdamW(other.model.parameters(), lr=0.1, **options)
    adamw.register_step_pre_hook(lambda *_: preconditioner.precondition())
    train(other, adamw, 4)
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=1e-5, atol=1e-6)


def test_a_preconditioner_rewrites_the_gradients_and_no_parameter(problem: Problem) -> None:
    optimizer = make_ngd(problem, weight_decay=0.5)
    before = flat(problem.model)
    problem.loss().backward()
    assert optimizer.capture is not None
    direction, _ = solve_woodbury(optimizer.capture.operator, gradient_of(problem.model), 0.1)
    optimizer.precondition()
    torch.testing.assert_close(gradient_of(problem.model), direction.float())
    torch.testing.assert_close(flat(problem.model), before, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r"call loss\.backward\(\)"):
        optimizer.precondition()  # of what is preconditioned already


def test_a_preconditioner_that_fails_leaves_the_gradients(problem: Problem) -> None:
    optimizer = make_ngd(problem)
    problem.loss().backward()
    before = gradient_of(problem.model)
    optimizer.hyperparameters["damping"] = 0.0
    with pytest.raises(ValueError, match="Invalid damping"):
        optimizer.precondition()
    torch.testing.assert_close(gradient_of(problem.model), before, rtol=0, atol=0)
    optimizer.hyperparameters["damping"] = 0.1
    optimizer.precondition()
    assert not torch.equal(gradient_of(problem.model), before)


def test_several_directions_are_updates_one_after_the_other(problem: Problem) -> None:
    class Twice(NGD):
        def _directions(self, operator, drive):
            (direction,) = super()._directions(operator, drive)
            yield direction
            yield -3.0 * direction

    other, before = copy.deepcopy(problem), flat(problem.model)
    optimizer = Twice(problem.model, problem.criterion, lr=0.1, damping=0.1, momentum=0.5)
    train(problem, optimizer, 1)
    once = make_ngd(other)
    train(other, once, 1)
    direction = flat(other.model) - before  # u = d, then 0.5 d − 3 d
    torch.testing.assert_close(flat(problem.model), before + (1.0 + 0.5 - 3.0) * direction)
    assert (optimizer.counts["updates"], once.counts["updates"]) == (2, 1)


def test_a_direction_lost_half_way_leaves_everything_as_it_was(problem: Problem) -> None:
    class Lost(NGD):
        lost = True

        def _directions(self, operator, drive):
            yield from super()._directions(operator, drive)
            if self.lost:
                raise ConnectionError("the device is gone")

    optimizer = Lost(problem.model, problem.criterion, lr=0.1, damping=0.1, momentum=0.5, curvature_every=2)
    before, state = flat(problem.model), copy.deepcopy(optimizer.state_dict())
    problem.loss().backward()
    with pytest.raises(ConnectionError):
        optimizer.step()
    torch.testing.assert_close(flat(problem.model), before, rtol=0, atol=0)
    assert (optimizer.steps, optimizer.counts["updates"]) == (0, 0)
    assert same(optimizer.state_dict(), state)
    optimizer.lost = False
    optimizer.step()  # the same gradients and their curvature are still there
    assert not torch.equal(flat(problem.model), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": (0.9,)}, r"Invalid betas: \(0\.9,\); it must be two numbers"),
        ({"betas": (0.9, 1.0)}, r"Invalid betas: \(0\.9, 1\.0\)"),
        ({"betas": (0.9, 0.9), "eps": 0.0}, r"Invalid eps: 0\.0; it must be more than 0"),
        ({"betas": (0.9, 0.9), "momentum": 0.9}, r"Invalid momentum: 0\.9; with betas it must be 0"),
        ({"weight_decay": -0.1}, r"Invalid weight_decay: -0\.1; it must be at least 0"),
        ({"betas": lambda step: (0.9, 0.9)}, "Invalid betas: a function; they must be two numbers"),
        ({"curvature_every": 1.5}, r"Invalid curvature_every: 1\.5; it must be a whole number"),
        ({"curvature_every": 0}, "Invalid curvature_every: 0; it must be a whole number, at least 1"),
    ],
)
def test_rules_that_make_no_sense_are_refused(problem: Problem, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_ngd(problem, **options)
    assert not count_hooks(problem.model)


@pytest.mark.parametrize("rule", [{"momentum": 0.9}, {"betas": (0.9, 0.99), "eps": 1e-8}])
def test_directions_are_left_as_they_are(rule: dict[str, Any]) -> None:
    """A reading is in other hands too."""
    parameter = torch.zeros(3)
    group = {"params": [parameter], "lr": 0.1, "weight_decay": 0.1, **rule}
    state: dict[Tensor, dict[str, Any]] = {parameter: {}}
    first, second = torch.ones(3), torch.full((3,), 2.0)
    update(group, {parameter: first}, state)
    update(group, {parameter: second}, state)
    assert (first.tolist(), second.tolist()) == ([1.0] * 3, [2.0] * 3)
    assert (parameter < 0).all()
