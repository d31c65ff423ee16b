"""Loops as people write them: mixed precision, accumulated gradients, a curvature now and then, and accidents."""

import copy
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from host_client import NGD, TNGD, Session
from host_client.solvers import solve_woodbury
from tests.cases import Problem
from tests.host_client.optimizers.ahead import Ahead
from tests.host_client.optimizers.training import flat, gradient_of, make_ngd, train


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Ahead:
    return Ahead(monkeypatch)


def test_a_step_that_the_scaler_skips_leaves_device_momentum_and_count_alone(
    problem: Problem, session: Session, ahead: Ahead
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    optimizer = TNGD(
        problem.model,
        problem.criterion,
        session,
        damping=lambda step: 0.1 / (1 + step),
        lr=0.3,
        analog_time=2.0,
        momentum=0.9,
        grad_scaler=scaler,
    )

    def iteration(times: int = 1) -> None:
        scaler.scale(times * problem.loss()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    iteration()
    parameters, state, last = flat(problem.model), copy.deepcopy(optimizer.state_dict()), optimizer.last_reading
    time = session.read().time
    scaler.update(2.0**127)
    iteration(8)  # 8 · 2¹²⁷ is infinite in float32
    assert scaler.get_scale() == 2.0**126  # it was skipped
    torch.testing.assert_close(flat(problem.model), parameters, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]
    assert optimizer.steps == 1
    assert last is not None
    assert optimizer.last_reading is last
    now = session.read()
    assert (now.time, now.sequence) == (time, last.sequence)
    assert ahead.became(2, 1, 1)  # what was sent ahead has been abandoned
    scaler.update(2.0**10)
    iteration()
    assert optimizer.steps == 2
    assert ahead.became(3, 2, 1)


@pytest.mark.parametrize("zero_grad", ["optimizer", "model"])
def test_of_gradients_that_are_added_up_and_dropped_nothing_stays_behind(
    problem: Problem, session: Session, ahead: Ahead, zero_grad: str
) -> None:
    optimizer = TNGD(problem.model, problem.criterion, session, damping=0.1, lr=0.3, analog_time=2.0)
    for _ in range(3):
        (problem.loss() / 3).backward()
    assert ahead.became(1, 0, 1)  # what is sent in the end is the curvature of all passes
    (optimizer if zero_grad == "optimizer" else problem.model).zero_grad()
    for _ in range(2):
        problem.loss().backward()
        optimizer.zero_grad()
    assert ahead.became(3, 0, 3)
    problem.loss().backward()
    optimizer.step()
    assert ahead.became(4, 1, 3)


def test_a_scaled_loop_with_clipping_is_the_plain_one(problem: Problem) -> None:
    other = copy.deepcopy(problem)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    plain, scaled = make_ngd(problem), make_ngd(other, grad_scaler=scaler)
    for _ in range(3):
        problem.loss().backward()
        nn.utils.clip_grad_norm_(problem.model.parameters(), 0.05)
        plain.step()
        plain.zero_grad()

        scaler.scale(other.loss()).backward()
        scaler.unscale_(scaled)
        nn.utils.clip_grad_norm_(other.model.parameters(), 0.05)
        scaler.step(scaled)
        scaler.update()
        scaled.zero_grad()
    torch.testing.assert_close(flat(other.model), flat(problem.model), rtol=1e-5, atol=1e-7)


def test_a_scaler_before_a_preconditioned_optimizer_skips_both(problem: Problem) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    preconditioner = make_ngd(problem, grad_scaler=scaler)
    sgd = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    sgd.register_step_pre_hook(lambda *_: preconditioner.precondition())
    before = flat(problem.model)
    for scale, steps in ((2.0**127, 0), (2.0**8, 1)):
        if steps:
            scaler.update(scale)
        scaler.scale(8 * problem.loss()).backward()
        scaler.step(sgd)
        sgd.zero_grad()
        assert preconditioner.steps == steps
        assert torch.equal(flat(problem.model), before) == (steps == 0)


def test_between_two_curvatures_nothing_is_captured_and_the_last_one_serves(problem: Problem) -> None:
    optimizer = make_ngd(problem, curvature_every=3)
    assert optimizer.capture is not None
    operators: list[Any] = []
    captured = []
    for step in range(7):
        before = flat(problem.model)
        loss = problem.loss()
        with suppress(RuntimeError):  # where there is no new one
            operators.append(optimizer.capture.operator)
            captured.append(step)
        loss.backward()
        direction, _ = solve_woodbury(operators[step // 3], gradient_of(problem.model), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(flat(problem.model), before - 0.1 * direction.float())
    assert captured == [0, 3, 6]


def test_gradients_add_up_between_two_curvatures(problem: Problem) -> None:
    other = copy.deepcopy(problem)
    parts, whole = make_ngd(problem, curvature_every=2), make_ngd(other, curvature_every=2)
    for _ in range(4):
        for inputs, targets in zip(problem.inputs.chunk(2), problem.targets.chunk(2), strict=True):
            (problem.criterion(problem.model(inputs), targets) / 2).backward()
        parts.step()
        parts.zero_grad()
    train(other, whole, 4)
    torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=1e-4, atol=1e-6)


def test_a_device_keeps_its_curvature_between_two(problem: Problem, session: Session) -> None:
    other = copy.deepcopy(problem)
    options: Any = {"lr": 0.3, "damping": 0.1, "curvature_every": 3, "momentum": 0.5}
    train(problem, TNGD(problem.model, problem.criterion, session, analog_time=500.0, **options), 5)
    train(other, NGD(other.model, other.criterion, **options), 5)
    torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=1e-4, atol=1e-5)


def test_a_step_skipped_or_failed_does_not_use_up_a_curvature(problem: Problem) -> None:
    optimizer = make_ngd(problem, curvature_every=2)
    assert optimizer.capture is not None
    problem.loss().backward()
    optimizer.zero_grad()  # a batch that is left out
    problem.loss().backward()
    optimizer.hyperparameters["damping"] = -1.0
    with pytest.raises(ValueError, match="Invalid damping"):
        optimizer.step()
    optimizer.hyperparameters["damping"] = 0.1
    assert optimizer.capture.operator.parameters
    optimizer.step()
    optimizer.zero_grad()
    problem.loss().backward()
    optimizer.zero_grad()  # another one
    problem.loss().backward()
    with pytest.raises(RuntimeError, match="no loss has been captured since"):
        print(optimizer.capture.operator)
    optimizer.step()
    optimizer.zero_grad()
    problem.loss().backward()
    assert optimizer.capture.operator.parameters
    optimizer.step()
    assert optimizer.steps == 3


def test_a_curvature_that_is_given_is_asked_for_when_it_is_due(problem: Problem) -> None:
    other = make_ngd(copy.deepcopy(problem))
    assert other.capture is not None
    problem_of = other.capture
    problem_of.criterion(problem_of.model(problem.inputs), problem.targets)
    operator, asked = problem_of.operator, []

    def given() -> Any:
        asked.append(optimizer.steps)
        return operator

    optimizer = make_ngd(problem, curvature=given, curvature_every=3)
    train(problem, optimizer, 7)
    assert asked == [0, 3, 6]


def test_between_two_curvatures_a_step_still_needs_gradients(problem: Problem) -> None:
    optimizer = make_ngd(problem, curvature_every=2)
    train(problem, optimizer, 1)
    with pytest.raises(RuntimeError, match=r"no parameter has a gradient: call loss\.backward\(\) before step\(\)"):
        optimizer.step()
    assert optimizer.steps == 1


def test_a_closure_may_be_used_with_everything_else(problem: Problem) -> None:
    other = copy.deepcopy(problem)
    options: dict[str, Any] = {"curvature_every": 2, "betas": (0.9, 0.99), "lr": lambda step: 0.1 / (1 + step)}
    optimizer = make_ngd(problem, **options)

    def closure() -> float:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(4)]
    assert losses == pytest.approx(train(other, make_ngd(other, **options), 4))
    torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=0, atol=0)


def test_a_loop_interrupted_anywhere_goes_on(problem: Problem) -> None:
    """An exception between any two lines of an iteration, an evaluation in training mode, and then the iteration."""
    other = copy.deepcopy(problem)
    optimizer = make_ngd(problem, momentum=0.9)

    def interrupted(after: int) -> None:
        lines = [
            lambda: problem.model(problem.inputs),
            lambda: problem.criterion(problem.model(problem.inputs), problem.targets),
            lambda: problem.loss().backward(),
        ]
        lines[after]()
        raise InterruptedError

    for after in range(3):
        with pytest.raises(InterruptedError):
            interrupted(after)
        optimizer.zero_grad()
        problem.loss()
        train(problem, optimizer, 1)
    train(other, make_ngd(other, momentum=0.9), 3)
    torch.testing.assert_close(flat(problem.model), flat(other.model), rtol=0, atol=0)
