"""Devices that must have survived whatever a test did to them."""

from __future__ import annotations

import pytest

from tests.system.device import SteadyDevice


@pytest.fixture
def device(stepped):
    """On a stepped clock. That it is unharmed is seen to after every test."""
    device = SteadyDevice(stepped)
    yield device
    device.assert_unharmed()


@pytest.fixture
def free_device(free):
    """On a free-running clock, likewise."""
    device = SteadyDevice(free)
    yield device
    device.assert_unharmed()
