"""Fixtures: one run of a test for each of the shared cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.cases import CASES, Case


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the shared cases."""
    chosen: Case = request.param
    return chosen


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The cases are tiny: threads would only wait for each other, for long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
