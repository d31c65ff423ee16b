"""A driver that fails is a fault with its reason; the daemon goes on, starts it again, and the device works again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from host_client import connect
from spu_link.errors import DeviceFault, DeviceHalted, SpuError
from spu_link.operators import Rows
from tests.daemon import Daemon
from tests.plugins.install import distribution
from tests.system.device import DAMPING, LONG, A, B, solution
from tests.system.raw import eventually

DEADLINE = 0.4
EVIDENCE_SECONDS = 2.0
"""Longest from the evidence of a fault to the fault."""


class BreakingDevice:
    """A daemon whose driver breaks in a way when told."""

    def __init__(self, folder: Path) -> None:
        plugins = distribution(folder / "plugins", "broken-drivers", {"broken": "tests.plugins.broken:Broken"})
        root = Path(__file__).parent.parent.parent
        self.how = folder / "how"
        path = os.pathsep.join([str(plugins), str(root), os.environ.get("PYTHONPATH", "")])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", path)
            options = ["--driver-option", f"file={self.how}", "--clock", "stepped", "--driver-deadline", str(DEADLINE)]
            self.daemon = Daemon(folder / "s", "--driver", "broken", *options)
        self.spu = connect(self.daemon.address, timeout=20.0)

    def break_once(self, how: str) -> None:
        """Let the driver break at its next chance."""
        aside = self.how.with_suffix(".new")
        aside.write_text(how)
        aside.rename(self.how)

    def assert_recovers(self, words: str, restarts: int) -> None:
        """The fault's reason is known until a session is opened after the restart, and then the device works."""
        eventually(lambda: self.spu.info.state == "halted", "the driver has been restarted")
        info = self.spu.info
        assert words in info.fault
        assert info.restarts == restarts + 1
        with self.spu.session() as session:
            assert self.spu.info.state == "idle"
            assert self.spu.info.fault == ""
            reading = session.solve(Rows(A), B, damping=DAMPING, analog_time=LONG)
            torch.testing.assert_close(reading.value, solution(B, DAMPING))


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BreakingDevice]:
    one = BreakingDevice(tmp_path_factory.mktemp("d"))
    yield one
    one.spu.close()
    one.daemon.close()


@pytest.mark.parametrize(
    ("how", "words", "late"),
    [
        ("segfault", "SIGSEGV", 0.0),
        ("hang", "hangs", 1.5 * DEADLINE),
        ("hang in stage", "hangs", 1.5 * DEADLINE),
        ("exception", "the converter is on fire", 0.0),
        ("nan", "not finite", 0.0),
        ("short", "shape (2,)", 0.0),
    ],
)
def test_a_driver_that_fails_is_told_with_its_reason_and_works_again_after_its_restart(device, how, words, late):
    restarts = device.spu.info.restarts
    session = device.spu.open_session()
    device.break_once(how)
    begin = time.monotonic()
    with pytest.raises(DeviceFault) as caught:
        session.solve(Rows(A), B, damping=DAMPING, analog_time=LONG)
    assert words in caught.value.message
    assert time.monotonic() - begin < EVIDENCE_SECONDS + late
    with pytest.raises(DeviceFault):
        session.read()
    eventually(lambda: device.spu.info.state == "halted", "the driver has been restarted")
    with pytest.raises(DeviceFault):  # what this session had programmed is gone, and it is told so
        session.read()
    device.assert_recovers(words, restarts)
    with pytest.raises(SpuError, match="session"):
        session.read()
    session.close()


@pytest.mark.parametrize(
    ("how", "words"), [("clock lies", "the device's clock went on"), ("exception in prepare", "the oven is cold")]
)
def test_a_driver_that_fails_while_nobody_asks_is_found_out(device, how, words):
    restarts = device.spu.info.restarts
    with device.spu.session() as session:
        device.break_once(how)
        begin = time.monotonic()
        if "prepare" in how:
            with suppress(DeviceFault):  # it may come before the answer
                session.program(Rows(A), B, damping=DAMPING)
        eventually(lambda: words in device.spu.info.fault, "the fault is told")
        assert time.monotonic() - begin < EVIDENCE_SECONDS
    device.assert_recovers(words, restarts)


def test_a_halt_does_not_wait_for_a_busy_driver(device):
    restarts = device.spu.info.restarts
    errors: list[Exception] = []
    with device.spu.session() as session:
        session.program(Rows(A), B, damping=DAMPING)

        def read() -> None:
            try:
                session.read()
            except SpuError as error:
                errors.append(error)

        device.break_once("hang")
        thread = threading.Thread(target=read)
        thread.start()
        eventually(lambda: not device.how.exists(), "the driver has begun to hang")
        begin = time.monotonic()
        device.spu.halt("in a hurry")
        took = time.monotonic() - begin
        thread.join(10.0)
    assert took < 0.2, f"{took:.3f} s"
    assert isinstance(errors[0], (DeviceHalted, DeviceFault))
    device.assert_recovers("halted: killed", restarts)
