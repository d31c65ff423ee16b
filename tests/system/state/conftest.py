"""A state that was saved."""

from __future__ import annotations

import pytest

from spu_link.operators import Rows
from tests.system.device import A, B
from tests.system.state.runs import stepped_inproc


@pytest.fixture(scope="module")
def state() -> bytes:
    with stepped_inproc() as session:
        session.solve(Rows(A), B, damping=0.5, noise=0.1, analog_time=1.0)
        return session.save_state()
