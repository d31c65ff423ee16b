"""Tensors that are not finite: an error that names them, before they are sent anywhere."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from host_client import KFAC, NGD, TNGD, Diverged, Session
from spu_link.operators import Rows
from tests.cases import Problem
from tests.host_client.optimizers.fakes import Recorder
from tests.host_client.optimizers.training import SOLVED, flat, train


@pytest.fixture
def small() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return Problem(model, nn.CrossEntropyLoss(), torch.randn(6, 5), torch.randint(3, (6,)))


def spoil(problem: Problem, value: float) -> None:
    """Differentiate the loss, and put a value into one gradient."""
    problem.criterion(problem.model(problem.inputs), problem.targets).backward()
    gradient = problem.model[2].weight.grad
    assert gradient is not None
    gradient[1, 2] = value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [*SOLVED, KFAC])
def test_step_and_tensor_are_named(small: Problem, kind: Any, value: float) -> None:
    optimizer = kind(small.model, small.criterion, lr=0.1, damping=0.1, momentum=0.9)
    train(small, optimizer, 2)
    before = flat(small.model)
    spoil(small, value)
    message = r"step 3: the gradient of '2\.weight' is not finite; .* lower lr, raise damping .* trust_region"
    with pytest.raises(Diverged, match=message) as caught:
        optimizer.step()
    assert (caught.value.step, caught.value.tensor) == (3, "gradient of '2.weight'")
    assert isinstance(caught.value, FloatingPointError)
    assert torch.equal(flat(small.model), before)
    optimizer.zero_grad()
    train(small, optimizer, 1)
    assert optimizer.steps == 3


def test_nothing_is_sent_to_the_device(small: Problem) -> None:
    device: Any = Recorder()
    optimizer = TNGD(small.model, small.criterion, device, lr=0.1, damping=0.1, analog_time=1.0)
    spoil(small, math.nan)
    for call in (optimizer.step, optimizer.precondition):
        with pytest.raises(Diverged, match=r"step 1: the gradient of '2\.weight'"):
            call()
    assert device.asked == []


def test_a_device_goes_on_after_a_model_that_is_nan_has_been_restored(small: Problem, session: Session) -> None:
    optimizer = TNGD(small.model, small.criterion, session, lr=0.1, damping=0.1, analog_time=1.0)
    train(small, optimizer, 1)
    good = {name: value.clone() for name, value in small.model.state_dict().items()}
    with torch.no_grad():
        small.model[2].bias[0] = math.nan
    with pytest.raises(Diverged, match=r"step 2: the parameter '2\.bias'"):
        train(small, optimizer, 1)
    optimizer.zero_grad()
    small.model.load_state_dict(good)
    train(small, optimizer, 2)
    assert flat(small.model).isfinite().all()
    assert optimizer.last_reading is not None
    assert optimizer.last_reading.sequence == 3


def test_a_reading_that_is_not_finite_is_not_kept(small: Problem) -> None:
    class Broken(Recorder):
        def exchange(self, *arguments: Any, **options: Any) -> Any:
            arrived = super().exchange(*arguments, **options)
            arrived[0].reading.value[0] = math.nan
            return arrived

    device: Any = Broken()
    optimizer = TNGD(small.model, small.criterion, device, lr=0.1, damping=0.1, analog_time=1.0)
    before = flat(small.model)
    with pytest.raises(Diverged, match=r"step 1: the reading of '0\.weight' is not finite"):
        train(small, optimizer, 1)
    assert torch.equal(flat(small.model), before)
    assert optimizer.last_reading is None


@pytest.mark.parametrize("kind", SOLVED)
def test_a_curvature_that_is_not_finite_is_named(small: Problem, kind: Any) -> None:
    rows = torch.full((1, flat(small.model).numel()), math.nan)
    optimizer = kind(small.model, small.criterion, lr=0.1, damping=0.1, curvature=lambda: Rows(rows))
    with pytest.raises(Diverged, match="step 1: the curvature is not finite"):
        train(small, optimizer, 1)


def test_a_direction_that_is_not_finite_is_named(small: Problem) -> None:
    class Broken(NGD):
        def _directions(self, operator, drive):
            return [drive * math.inf]

    optimizer = Broken(small.model, small.criterion, lr=0.1, damping=0.1)
    with pytest.raises(Diverged, match=r"step 1: the direction of '0\.weight' is not finite"):
        train(small, optimizer, 1)


def test_gradients_left_to_adam_count_too(small: Problem) -> None:
    groups = [{"params": small.model[2].parameters(), "adam": True}]
    optimizer = NGD(small.model, small.criterion, lr=0.1, damping=0.1, groups=groups)
    before = flat(small.model)
    spoil(small, math.nan)
    with pytest.raises(Diverged, match=r"gradient of '2\.weight'"):
        optimizer.step()
    assert torch.equal(flat(small.model), before)


def test_it_crosses_processes() -> None:
    again = pickle.loads(pickle.dumps(Diverged(3, "gradient of 'a'")))
    assert (again.step, again.tensor, str(again)) == (3, "gradient of 'a'", str(Diverged(3, "gradient of 'a'")))
