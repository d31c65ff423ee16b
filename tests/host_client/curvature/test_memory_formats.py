"""The memory format of tensors changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from host_client.curvature import Capture
from tests.cases import CASES, Case, Problem
from tests.host_client.curvature.oracle import assert_same_curvature

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of dimensions of a batch of images."""

GROUPED = Case(
    "group norm between convolutions",
    lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 3)
    ),
    (2, 4, 4),
)


def factor(problem: Problem) -> Tensor:
    capture = Capture(problem.model, problem.criterion)
    problem.loss()
    a = capture.operator.dense()
    capture.close()
    return a


@pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel:UserWarning",
    "ignore::host_client.curvature.errors.CurvatureFallback",
)
@pytest.mark.parametrize(
    "case", [GROUPED, *(case for case in CASES if len(case.sample) in (3, 4))], ids=lambda case: case.name
)
def test_images_with_channels_last_have_the_curvature_of_those_with_channels_first(case: Case) -> None:
    problem = case.problem()
    form = FORMATS[problem.inputs.dim()]
    model = copy.deepcopy(problem.model).to(memory_format=form)  # type: ignore[call-overload]
    last = Problem(
        model, problem.criterion, problem.inputs.contiguous(memory_format=form), problem.targets, problem.call
    )
    torch.manual_seed(0)
    expected = factor(problem)
    torch.manual_seed(0)
    found = factor(last)
    sizes = [p.numel() for p in problem.trained]
    assert_same_curvature(found.T @ found, expected.T @ expected, sizes, case.tolerance)
