"""Fixtures: a network to train, and a device in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from host_client import Session, connect
from tests.cases import CASES, Problem


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
    return next(case for case in CASES if case.name == "pooling, residual, in place").problem(torch.float32)


@pytest.fixture
def session() -> Iterator[Session]:
    """A stepped emulator in this process."""
    with connect("inproc:", clock="stepped", seed=0) as spu, spu.session() as one:
        yield one
