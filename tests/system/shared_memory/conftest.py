"""A device that must have survived whatever a test did to it."""

from __future__ import annotations

import pytest

from tests.system.device import SteadyDevice
from tests.system.raw import eventually
from tests.system.side import shared_in


@pytest.fixture
def device(stepped):
    """On a stepped clock. That it is unharmed, and holds no memory of a client, is seen to after every test."""
    device = SteadyDevice(stepped)
    yield device
    device.assert_unharmed()
    eventually(lambda: not shared_in(stepped), "no client's memory is left")
