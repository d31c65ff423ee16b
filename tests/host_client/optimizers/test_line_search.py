"""Steps that are halved until the loss of their batch decreases."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_client import KFAC, NGD, TNGD, LevenbergMarquardt, LineSearch, Session
from host_client.optimizers.base import NaturalGradient
from tests.cases import Problem
from tests.host_client.optimizers.training import SOLVED, flat


def least_squares() -> Problem:
    """A linear model with a quadratic loss, so the loss decreases for a total step of less than 2 Newton steps."""
    torch.manual_seed(0)
    inputs = torch.randn(20, 5, dtype=torch.float64)
    return Problem(nn.Linear(5, 2).double(), nn.MSELoss(), inputs, torch.randn(20, 2, dtype=torch.float64))


def classifier() -> Problem:
    """With random numbers in the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Dropout(0.2), nn.Linear(40, 3)).double()
    return Problem(model, nn.CrossEntropyLoss(), torch.randn(30, 5, dtype=torch.float64), torch.randint(3, (30,)))


def closure_of(problem: Problem, optimizer: torch.optim.Optimizer, *, sign: float = 1.0) -> Callable[[], float]:
    """The closure; with the sign −1 gradients point the wrong way."""

    def closure() -> float:
        optimizer.zero_grad()
        loss: Tensor = problem.criterion(problem.model(problem.inputs), problem.targets)
        loss.backward()
        for parameter in problem.model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(sign)
        return loss.item()

    return closure


def newton(problem: Problem, **options: Any) -> NGD:
    settings: dict[str, Any] = {"lr": 6.0, "damping": 1e-9, "line_search": LineSearch(), **options}
    return NGD(problem.model, problem.criterion, **settings)


def test_the_step_is_halved_until_the_loss_decreases() -> None:
    problem, other = least_squares(), least_squares()
    optimizer, plain = newton(problem), newton(other, lr=1.5, line_search=None)
    optimizer.step(closure_of(problem, optimizer))
    plain.step(closure_of(other, plain))
    torch.testing.assert_close(flat(problem.model), flat(other.model))
    assert optimizer.counts["loss evaluations"] == 3  # at 6, 3 and 1.5
    assert optimizer.counts["updates"] == 1


def test_a_step_that_decreases_the_loss_is_as_without_a_line_search() -> None:
    problem, other = least_squares(), least_squares()
    optimizer, plain = newton(problem, lr=0.5), newton(other, lr=0.5, line_search=None)
    for _ in range(3):
        optimizer.step(closure_of(problem, optimizer))
        plain.step(closure_of(other, plain))
    assert torch.equal(flat(problem.model), flat(other.model))
    assert optimizer.counts["loss evaluations"] == 3


@pytest.mark.parametrize("kind", [*SOLVED, KFAC, TNGD])
def test_the_loss_of_a_batch_only_decreases(kind: Any, session: Session) -> None:
    problem = classifier()
    problem.model[2].p = 0.0
    device: Any = {"session": session, "analog_time": 50.0} if kind is TNGD else {}
    optimizer = kind(problem.model, problem.criterion, lr=100.0, damping=0.1, line_search=LineSearch(), **device)
    losses = [optimizer.step(closure_of(problem, optimizer)) for _ in range(6)]
    assert all(after < before for before, after in pairwise(losses))
    assert losses[-1] < losses[0] / 2
    assert optimizer.counts["loss evaluations"] > 6
    if kind is TNGD:
        assert optimizer.last_reading.sequence == 6  # the device is not asked again


def test_gradients_random_numbers_and_hooks_are_as_after_one_evaluation() -> None:
    problem, other = classifier(), classifier()
    masks: list[Tensor] = []
    problem.model[2].register_forward_hook(lambda module, args, output: masks.append(output == 0))
    optimizer = newton(problem, lr=50.0, damping=0.1)
    torch.manual_seed(1)
    optimizer.step(closure_of(problem, optimizer))
    drawn = torch.rand(3)
    torch.manual_seed(1)
    closure_of(other, torch.optim.SGD(other.model.parameters(), lr=0.1))()
    assert torch.equal(drawn, torch.rand(3))
    for p, q in zip(problem.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]
    assert len(masks) > 2
    assert all(torch.equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"spring": 0.9}])
def test_where_no_halving_decreases_the_loss_there_is_no_update_and_momentum_starts_anew(options: Any) -> None:
    problem, other = least_squares(), least_squares()
    optimizer = newton(problem, lr=0.1, damping=0.1, line_search=LineSearch(halvings=4), **options)
    optimizer.step(closure_of(problem, optimizer))
    before = flat(problem.model)
    optimizer.step(closure_of(problem, optimizer, sign=-10.0))
    assert torch.equal(flat(problem.model), before)
    assert (optimizer.counts["no decrease"], optimizer.counts["updates"], optimizer.steps) == (1, 1, 2)
    assert optimizer.counts["loss evaluations"] == 1 + 5
    # The next step is the first one of a new optimizer.
    other.model.load_state_dict(problem.model.state_dict())
    fresh = newton(other, lr=0.1, damping=0.1, **options)
    optimizer.step(closure_of(problem, optimizer))
    fresh.step(closure_of(other, fresh))
    torch.testing.assert_close(flat(problem.model), flat(other.model))


def test_momentum_is_shortened_with_the_update() -> None:
    problem = least_squares()
    optimizer = newton(problem, momentum=0.9)
    for _ in range(4):
        before = flat(problem.model)
        optimizer.step(closure_of(problem, optimizer))
        momentum = torch.cat([optimizer.state[p]["momentum_buffer"].flatten() for p in problem.model.parameters()])
        torch.testing.assert_close(flat(problem.model) - before, -6.0 * momentum, rtol=1e-9, atol=1e-12)


def test_a_trust_region_bounds_first() -> None:
    problem, other = least_squares(), least_squares()
    optimizer, plain = newton(problem, trust_region=1e-4), newton(other, trust_region=1e-4, line_search=None)
    optimizer.step(closure_of(problem, optimizer))
    plain.step(closure_of(other, plain))
    assert torch.equal(flat(problem.model), flat(other.model))
    assert (optimizer.counts["trust region"], optimizer.counts["loss evaluations"]) == (1, 1)


def test_damping_is_adapted_to_the_whole_step_by_the_same_evaluation() -> None:
    problem = least_squares()
    rule = LevenbergMarquardt(every=1, grow=2.0, shrink=0.5)
    good = newton(problem, lr=0.5, damping=0.8, adapt_damping=rule)
    good.step(closure_of(problem, good))
    assert (good.counts["loss evaluations"], good.hyperparameters["damping"]) == (1, 0.4)
    too_long = newton(problem, lr=30.0, damping=0.8, adapt_damping=rule)
    too_long.step(closure_of(problem, too_long))
    assert too_long.hyperparameters["damping"] == 1.6
    assert too_long.counts["loss evaluations"] > 1


def test_parameters_left_to_adam_are_part_of_the_step() -> None:
    problem = least_squares()
    bias = problem.model.bias
    optimizer = newton(problem, lr=0.5, damping=0.1, groups=[{"params": [bias], "adam": True, "lr": 1e3}])
    before = flat(problem.model)
    losses = [optimizer.step(closure_of(problem, optimizer)) for _ in range(2)]
    assert losses[1] < losses[0]
    assert 0.0 < float((flat(problem.model) - before)[-2:].abs().max()) < 100.0


@pytest.mark.parametrize("groups", [None, "adam"])
def test_a_closure_that_fails_in_the_search_leaves_everything_as_it_was(groups: str | None) -> None:
    problem = classifier()
    adam = [{"params": problem.model[0].parameters(), "adam": True}] if groups else None
    optimizer = newton(problem, lr=50.0, damping=0.1, momentum=0.9, groups=adam)
    optimizer.step(closure_of(problem, optimizer))
    before, kept, calls = flat(problem.model), copy.deepcopy(optimizer.state_dict()["state"]), 0

    def closure() -> float:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise InterruptedError
        return 0.5 * closure_of(problem, optimizer)() if calls == 1 else 1e9

    with pytest.raises(InterruptedError):
        optimizer.step(closure)
    assert torch.equal(flat(problem.model), before)
    torch.testing.assert_close(optimizer.state_dict()["state"], kept, rtol=0, atol=0)
    assert optimizer.steps == 1
    optimizer.step(closure_of(problem, optimizer))


@pytest.mark.parametrize("every", [1, 2])
def test_it_goes_with_a_curvature_every_few_steps(every: int) -> None:
    problem = classifier()
    optimizer = newton(problem, lr=2.0, damping=0.1, curvature_every=every)
    for _ in range(4):
        optimizer.step(closure_of(problem, optimizer))
    assert optimizer.counts["updates"] == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (NaturalGradient.step, r"line_search compares .* give step\(closure\)"),
        (NaturalGradient.precondition, "line_search has to see"),
    ],
)
def test_it_says_what_it_needs(call: Callable[[NaturalGradient], None], message: str) -> None:
    problem = least_squares()
    optimizer = newton(problem)
    closure_of(problem, optimizer)()
    before = flat(problem.model)
    with pytest.raises(RuntimeError, match=message):
        call(optimizer)
    assert torch.equal(flat(problem.model), before)


def test_what_makes_no_sense_is_refused() -> None:
    problem = least_squares()
    with pytest.raises(ValueError, match="Invalid halvings: -1; it must be a whole number, at least 0"):
        LineSearch(halvings=-1)
    with pytest.raises(ValueError, match=r"Invalid line_search: LineSearch\(halvings=30\); with betas it must be None"):
        newton(problem, betas=(0.9, 0.99))
