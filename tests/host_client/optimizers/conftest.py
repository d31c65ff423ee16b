"""Fixtures: a network to train."""

from __future__ import annotations

import pytest
import torch

from tests.cases import Problem, named


@pytest.fixture
def problem() -> Problem:
    """Convolution, in-place ReLU, pooling and a linear layer, in float32."""
    return named("pooling, residual, in place").problem(torch.float32)
