"""A driver in the client's own process: what a daemon would do about its failures, and what here is said instead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from host_client import connect
from host_client.blocking import Spu
from spu_link import wire
from spu_link.errors import DeviceFault
from spu_link.operators import Rows
from spu_link.program import Program
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.hosted import CheckedDriver
from spu_server.drivers.port import LocalDriver
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


async def test_a_call_that_was_made_during_a_commit_does_not_wait_for_the_work_after_it():
    port = LocalDriver("emulator", DriverOptions())
    await port.start()
    header, tensors = wire.header_of(Program(Rows(A), B, damping=DAMPING))
    await port.stage(header.SerializeToString(), memoryview(bytearray(b"".join(wire.byte_views(tensors)))))
    committed = threading.Event()
    try:
        async with asyncio.timeout(20.0):
            commit = asyncio.create_task(port.call(CheckedDriver.commit, 0.0))
            blocked = asyncio.create_task(port.call(lambda driver: committed.wait(20.0)))
            report = asyncio.create_task(port.call(CheckedDriver.report))
            await commit  # the work ahead is behind the other two now
            committed.set()
            assert await blocked
            assert (await report)["uploads"] == 1
    finally:
        committed.set()
        await port.close()
