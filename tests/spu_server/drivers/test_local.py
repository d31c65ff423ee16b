"""A driver in the client's own process: what a daemon would do about its failures, and what here is said instead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from host_client import connect
from host_client.blocking import Spu
from spu_link.errors import DeviceFault
from spu_link.operators import Rows
from tests.plugins.install import distribution
from tests.system.device import DAMPING, A, B

FAILED = "the converter is on fire.*a driver in this process is not started again: close this connection"


@pytest.fixture
def breaking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Spu]:
    """Opens the driver that breaks in the ways given."""
    plugins = distribution(tmp_path / "plugins", "broken-drivers", {"broken": "tests.plugins.broken:Broken"})
    monkeypatch.syspath_prepend(str(plugins))

    def opened(*how: str, **options: Any) -> Spu:
        (tmp_path / "how").write_text("\n".join(how))
        settings = {"file": str(tmp_path / "how")}
        return connect("inproc:", driver="broken", driver_option=settings, clock="stepped", **options)

    return opened


def test_it_is_not_started_again_and_every_error_says_the_way_out(breaking):
    with breaking("exception") as spu:
        session = spu.open_session()
        session.program(Rows(A), B, damping=DAMPING)
        with pytest.raises(DeviceFault, match=FAILED):
            session.read()
        assert (spu.info.state, spu.info.restarts) == ("fault", 0)
        for call in (session.read, spu.open_session, spu.report):
            with pytest.raises(DeviceFault, match=FAILED):
                call()
    with breaking() as spu, spu.session() as session:
        session.solve(Rows(A), B, damping=DAMPING, analog_time=1.0)


def test_a_device_that_finds_something_wrong_with_itself_is_not_opened_and_leaves_no_thread_behind(breaking):
    before = set(threading.enumerate())
    with pytest.raises(DeviceFault, match="self-test found: the reference voltage is gone"):
        breaking("self-test")
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("driver-")]


def test_it_is_calibrated_if_that_is_asked_for(breaking):
    for wanted, time in ((False, None), (True, 0.0)):
        with breaking(calibrate=wanted) as spu:
            assert spu.info.calibrated == time
            assert spu.report() == {"calibrations": float(wanted)}
