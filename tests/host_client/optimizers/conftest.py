"""Fixtures: a network to train."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.cases import Problem, named


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks are tiny: threads would only wait for each other, for long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def problem() -> Problem:
    """Convolution, in-place ReLU, pooling and a linear layer, in float32."""
    return named("pooling, residual, in place").problem(torch.float32)
