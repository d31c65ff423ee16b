"""Gradients accumulated over several passes, and the curvature with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from host_client import Session
from host_client.curvature import Capture
from host_client.optimizers import NGD, TNGD
from tests.cases import Case, Problem, named
from tests.cases.targets import labels
from tests.host_client.curvature.oracle import assert_captured, assert_same_curvature, curvature

NAMES = [
    "mlp",
    "linear on tokens",
    "convolution",
    "convolution, explicit rows",
    "transposed in 1d",
    "embedding",
    "layer norm",
    "positions as an embedding",
    "attention",
    "bert, sdpa",
    "gpt2, eager",
    "layer called twice",
    "bilinear",
    "frozen bias",
    "probabilities as targets",
    "flattened sequence, mean",
    "binary with weights",
    "squared error",
]

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.errors.CurvatureFallback")


@pytest.fixture(params=NAMES)
def varied(request: pytest.FixtureRequest) -> Case:
    """Cases whose mean is over as many terms in each half of the batch."""
    return named(request.param)


def _factor(capture: Capture) -> torch.Tensor:
    return capture.operator_of_gradients().dense()


def test_two_halves_have_the_curvature_of_the_whole(varied: Case) -> None:
    problem = varied.problem(batch=4)
    capture = Capture(problem.model, problem.criterion)
    for samples in (slice(0, 2), slice(2, 4)):
        (problem.part(samples).loss() / 2).backward()
    operator = capture.operator_of_gradients()
    capture.close()
    assert_captured(operator, problem, problem.outputs(), varied.tolerance)
    gradients = torch.autograd.grad(problem.loss(), problem.trained)
    for found, wanted in zip((p.grad for p in problem.trained), gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["flattened sequence, sum, weights and ignored", "embedding tied to the output"])
def test_passes_with_other_lengths_and_ignored_targets_add_up(name: str) -> None:
    problem = named(name).problem(batch=6)
    capture = Capture(problem.model, problem.criterion)
    total = torch.zeros(1, dtype=torch.float64)
    for length, ignored in ((1, 0), (4, 3), (3, 0)):
        inputs = problem.inputs[:2, :length]
        with torch.no_grad():
            targets = labels(Problem(problem.model, problem.criterion, inputs, inputs, problem.call).outputs())
        targets.view(-1)[:ignored] = -100
        part = Problem(problem.model, problem.criterion, inputs, targets, problem.call)
        outputs = part.outputs()
        loss = part.criterion(outputs, targets) / 3
        total = total + curvature(part, outputs) / 3
        loss.backward()
    a = _factor(capture)
    # As many rows a sample as the longest has positions, times the rank of the softmax.
    assert a.shape[0] == 6 * 4 * (outputs.shape[1] - 1)
    assert_same_curvature(a.T @ a, total, problem.sizes, 1e-10)


def test_monte_carlo_rows_add_up() -> None:
    problem = named("mlp").problem()
    capture = Capture(problem.model, problem.criterion, curvature="mc", samples=3)
    factors = []
    for samples in (slice(0, 2), slice(2, 4)):
        loss = problem.part(samples).loss() / 2
        factors.append(capture.operator.dense())
        loss.backward()
    found = _factor(capture)
    assert found.shape[0] == 12
    expected = sum(a.T @ a / 2 for a in factors)
    torch.testing.assert_close(found.T @ found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
def test_steps_after_accumulation_are_those_of_the_whole_batch(scaled: bool) -> None:
    parts, whole = named("mlp").problem(), named("mlp").problem()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
    options: dict[str, Any] = {"lr": 0.3, "damping": 0.1}
    optimizer = NGD(parts.model, parts.criterion, grad_scaler=scaler if scaled else None, **options)
    for _ in range(3):
        for samples in (slice(0, 2), slice(2, 4)):
            scaler.scale(parts.part(samples).loss() / 2).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    optimizer = NGD(whole.model, whole.criterion, **options)
    for _ in range(3):
        whole.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    for p, q in zip(parts.trained, whole.trained, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)


def test_a_device_takes_several_passes_as_one_program(session: Session) -> None:
    parts, whole = named("mlp").problem(torch.float32), named("mlp").problem(torch.float32)
    options: dict[str, Any] = {"lr": 0.3, "damping": 0.1, "analog_time": 20.0, "start": "drive"}
    optimizer = TNGD(parts.model, parts.criterion, session, **options)
    for samples in (slice(0, 2), slice(2, 4)):
        (parts.part(samples).loss() / 2).backward()
    optimizer.step()
    assert optimizer.last_reading is not None
    found = optimizer.last_reading.value
    optimizer = TNGD(whole.model, whole.criterion, session, **options)
    whole.loss().backward()
    optimizer.step()
    assert optimizer.last_reading is not None
    torch.testing.assert_close(found, optimizer.last_reading.value, rtol=1e-3, atol=1e-5)


def _uneven(problem: Problem) -> None:
    for samples, weight in ((slice(0, 1), 0.25), (slice(1, 4), 0.75)):
        (problem.part(samples).loss() * weight).backward()


def _summed(problem: Problem) -> None:
    problem.criterion.reduction = "sum"
    for samples in (slice(0, 2), slice(2, 4)):
        problem.part(samples).loss().backward()


def _at_once(problem: Problem) -> None:
    losses = [problem.part(samples).loss() / 2 for samples in (slice(0, 2), slice(2, 4))]
    torch.stack(losses).sum().backward()


@pytest.mark.parametrize("differentiate", [_uneven, _summed, _at_once])
def test_parts_of_a_batch_have_the_curvature_of_the_whole(differentiate: Callable[[Problem], None]) -> None:
    problem = named("mlp").problem()
    capture = Capture(problem.model, problem.criterion)
    differentiate(problem)
    operator = capture.operator_of_gradients()
    capture.close()
    assert_captured(operator, problem, problem.outputs())


def test_gradients_dropped_take_their_curvature_along() -> None:
    problem = named("mlp").problem()
    capture = Capture(problem.model, problem.criterion)
    problem.part(slice(0, 2)).loss().backward()
    capture.forget_gradients()
    part = problem.part(slice(2, 4))
    part.loss().backward()
    operator = capture.operator_of_gradients()
    capture.close()
    assert_captured(operator, part, part.outputs())


def test_gradients_count_after_the_memory_of_a_parameter_was_exchanged() -> None:
    model, criterion = nn.Linear(3, 2), nn.CrossEntropyLoss()
    capture = Capture(model, criterion)
    torch.utils.swap_tensors(model.weight, nn.Parameter(torch.randn(2, 3)))
    torch.utils.swap_tensors(model.bias, nn.Parameter(torch.randn(2)))
    criterion(model(torch.randn(4, 3)), torch.tensor([0, 1, 0, 1])).backward()
    assert capture.operator_of_gradients() is capture.operator
