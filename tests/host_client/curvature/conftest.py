"""Fixtures: one run of a test for each of the shared cases."""

from __future__ import annotations

import pytest

from tests.cases import CASES, Case


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the shared cases."""
    chosen: Case = request.param
    return chosen
