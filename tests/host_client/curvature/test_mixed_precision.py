"""Autocast and gradient scaling: the factor is that of full precision, but for the rounding of the forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from host_client.curvature import Capture
from tests.cases import Case, Problem, named

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
