"""Autocast and gradient scaling: the factor is that of full precision, but for the rounding of the forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from host_client import Session
from host_client.curvature import Capture
from host_client.optimizers import TNGD
from tests.cases import Case, Problem, named
from tests.host_client.optimizers.fakes import Recorder

BFLOAT16_EPSILON = 2.0**-8

NAMES = [
    "mlp",
    "linear on tokens",
    "convolution",
    "transposed in 1d",
    "embedding",
    "layer norm",
    "group norm",
    "scales and biases",
    "attention",
    "encoder",
    "bert, eager",
    "gpt2, sdpa",
    "lora, sdpa",
    "layer called twice",
    "weight norm",
    "flattened sequence, mean, weights and ignored",
    "binary with weights",
    "squared error",
]

pytestmark = pytest.mark.filterwarnings("ignore::host_client.curvature.errors.CurvatureFallback")


@pytest.fixture(params=NAMES)
def varied(request: pytest.FixtureRequest) -> Case:
    """Some of the shared cases."""
    return named(request.param)


def _curvature(problem: Problem, *, autocast: bool, **options: Any) -> torch.Tensor:
    capture = Capture(problem.model, problem.criterion, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = problem.loss()
    operator = capture.operator
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in problem.trained)
    capture.close()
    assert operator.dtype in (torch.float32, torch.float64)
    a = operator.dense().double()
    assert a.isfinite().all()
    return a.T @ a


def test_curvature_under_autocast_is_that_of_full_precision_to_its_rounding(varied: Case) -> None:
    full = _curvature(varied.problem(torch.float32), autocast=False)
    half = _curvature(varied.problem(torch.float32), autocast=True)
    error = torch.linalg.matrix_norm(half - full) / torch.linalg.matrix_norm(full)
    # A dozen roundings of 2^-9 in a row, some amplified by softmax and normalisation.
    assert error < 25 * BFLOAT16_EPSILON, f"{error:.3f}"


@pytest.mark.filterwarnings("ignore::host_client.curvature.errors.CurvatureApproximation")
def test_a_batch_norm_in_training_between_layers_in_bfloat16_is_captured() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 4), nn.Flatten())

    normed = Case("batch norm", network, (2, 6, 6))
    full, half = (_curvature(normed.problem(torch.float32), autocast=autocast) for autocast in (False, True))
    assert torch.linalg.matrix_norm(half - full) < 25 * BFLOAT16_EPSILON * torch.linalg.matrix_norm(full)


def test_autocast_of_the_criterion_alone_is_left_out() -> None:
    problem = named("mlp").problem(torch.float32)
    capture = Capture(problem.model, problem.criterion)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = problem.outputs()
    assert outputs.dtype == torch.bfloat16
    problem.criterion(outputs.float(), problem.targets).backward()
    a = capture.operator.dense().double()
    full = _curvature(named("mlp").problem(torch.float32), autocast=False)
    assert torch.linalg.matrix_norm(a.T @ a - full) < 25 * BFLOAT16_EPSILON * torch.linalg.matrix_norm(full)


def test_a_model_in_bfloat16_is_captured_in_float32() -> None:
    full = _curvature(named("mlp").problem(torch.float32), autocast=False)
    problem = named("mlp").problem(torch.float32)
    problem = Problem(problem.model.bfloat16(), problem.criterion, problem.inputs.bfloat16(), problem.targets)
    half = _curvature(problem, autocast=False)
    assert torch.linalg.matrix_norm(half - full) < 25 * BFLOAT16_EPSILON * torch.linalg.matrix_norm(full)


def _optimizer(problem: Problem, session: Any, **options: Any) -> TNGD:
    return TNGD(
        problem.model, problem.criterion, session, **{"lr": 0.3, "damping": 0.1, "analog_time": 20.0, **options}
    )


def _flat(problem: Problem) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in problem.trained])


def test_training_under_autocast_brings_the_loss_down(session: Session) -> None:
    problem = named("pooling, residual, in place").problem(torch.float32)
    optimizer = _optimizer(problem, session)
    losses = []
    for _ in range(15):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = problem.loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscaled by hand"])
def test_a_scaler_of_gradients_changes_nothing(session: Session, unscale: bool) -> None:
    scaled, plain = named("mlp").problem(torch.float32), named("mlp").problem(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = _optimizer(scaled, session, start="drive", grad_scaler=scaler)
    for _ in range(4):
        scaler.scale(scaled.loss()).backward()
        if unscale:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(scaled.trained, 1e9)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    optimizer.capture.close()
    optimizer = _optimizer(plain, session, start="drive")
    for _ in range(4):
        plain.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(_flat(scaled), _flat(plain), rtol=1e-4, atol=1e-5)


def test_a_step_that_the_scaler_skips_does_not_reach_the_device() -> None:
    problem = named("mlp").problem(torch.float32)
    recorder = Recorder()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = _optimizer(problem, recorder, grad_scaler=scaler)
    before = _flat(problem)
    scaler.scale(problem.loss()).backward()
    problem.trained[0].grad.fill_(torch.inf)  # type: ignore[union-attr]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert recorder.asked == []
    torch.testing.assert_close(_flat(problem), before, rtol=0, atol=0)
    optimizer.zero_grad()
    scaler.scale(problem.loss()).backward()
    scaler.step(optimizer)
    assert len(recorder.asked) == 1
