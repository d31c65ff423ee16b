"""A driver that fails is a fault with its reason; the daemon goes on, starts it again, and the device works again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from host_client import Session, connect
from spu_link.errors import DeviceFault, DeviceHalted, SpuError
from spu_link.operators import Rows
from spu_server.drivers.deadline import ANSWER_SECONDS
from tests.daemon import Daemon
from tests.plugins.install import distribution
from tests.pressure import Undisturbed
from tests.system.device import DAMPING, LONG, A, B, solution
from tests.system.raw import SECONDS, eventually

EVIDENCE_SECONDS = 2.0 if len(os.sched_getaffinity(0)) > 1 else 4.0
"""Longest from the evidence of a fault to the fault. That of a hang is that an answer is overdue.

A driver that spins takes half of a single processor from the daemon that watches it.
"""

HALT_SECONDS = 0.1
"""Timeout of a halt, in seconds."""

CALL_SECONDS = 0.1
"""Max time of the way to the daemon and back on a busy machine, in seconds."""


class BreakingDevice:
    """A daemon whose driver breaks on demand."""

    def __init__(self, folder: Path, *options: str) -> None:
        plugins = distribution(folder / "plugins", "broken-drivers", {"broken": "tests.plugins.broken:Broken"})
        root = Path(__file__).parent.parent.parent
        self.how = folder / "how"
        path = os.pathsep.join([str(plugins), str(root), os.environ.get("PYTHONPATH", "")])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", path)
            given = ["--driver-option", f"file={self.how}", "--clock", "stepped", *options]
            self.daemon = Daemon(folder / "s", "--driver", "broken", *given)
        self.spu = connect(self.daemon.address, timeout=20.0)

    def break_once(self, *how: str) -> None:
        """Let the driver break at its next chance; then, in other ways, at the next ones."""
        aside = self.how.with_suffix(".new")
        aside.write_text("\n".join(how))
        aside.rename(self.how)

    def assert_daemon_is_well(self) -> None:
        """It says that it serves, and answers at once."""
        with grpc.insecure_channel(self.daemon.address) as channel:
            request = health_pb2.HealthCheckRequest()
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = Undisturbed()
        assert self.spu.info.session_holder is None
        assert watch.seconds < CALL_SECONDS

    def assert_recovers(self, words: str, restarts: int) -> None:
        """The fault's reason is known until a session is opened after the restart, and then the device works."""
        eventually(lambda: self.spu.info.state == "halted", "the driver has been restarted")
        info = self.spu.info
        assert words in info.fault
        assert info.restarts == restarts
        with self.spu.session() as session:
            assert self.spu.info.state == "idle"
            assert self.spu.info.fault == ""
            reading = session.solve(Rows(A), B, damping=DAMPING, analog_time=LONG)
            torch.testing.assert_close(reading.value, solution(B, DAMPING))

    def close(self) -> None:
        self.spu.close()
        self.daemon.close()


class Neighbour:
    """Another daemon on this machine, in use all the time. Each of its readings depends on all before."""

    def __init__(self, folder: Path) -> None:
        self._daemon = Daemon(folder / "n", "--clock", "stepped", "--seed", "5")
        self._devices = [
            connect(self._daemon.address, timeout=20.0),
            connect("inproc:", clock="stepped", seed=5),
        ]
        self._session, self._twin = (device.open_session() for device in self._devices)
        self._done = 0

    @staticmethod
    def _solve(session: Session) -> torch.Tensor:
        return session.solve(Rows(A), B, damping=DAMPING, noise=0.1, start="keep", analog_time=0.5).value

    def use_until(self, enough: threading.Event) -> list[torch.Tensor]:
        """Its readings meanwhile."""
        values = [self._solve(self._session)]
        while not enough.wait(0.01):
            values.append(self._solve(self._session))
        return values

    def assert_untouched(self, values: list[torch.Tensor]) -> None:
        """They are, bit for bit, those of a device next to which nothing happens."""
        assert all(torch.equal(value, self._solve(self._twin)) for value in values)
        info = self._devices[0].info
        assert (info.state, info.fault, info.restarts) == ("running", "", 0)
        self._done += len(values)
        assert info.sequence == self._done

    def close(self) -> None:
        for device in self._devices:
            device.close()
        self._daemon.close()


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BreakingDevice]:
    one = BreakingDevice(tmp_path_factory.mktemp("d"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbour]:
    one = Neighbour(tmp_path_factory.mktemp("n"))
    yield one
    one.close()


WAYS = {
    "segfault": ("SIGSEGV", 0.0),
    "exception": ("the converter is on fire", 0.0),
    "nan": ("1 values that are not finite", 0.0),
    "short": ("of shape (2,)", 0.0),
    "hang": ("hangs: no answer to read within 1.5 s", ANSWER_SECONDS),
    "hang in stage": ("hangs: no answer to stage within 1.5 s", ANSWER_SECONDS),
    "spin": ("hangs: no answer to read within 1.5 s", ANSWER_SECONDS),
    "poll": ("hangs: no answer to read within 1.5 s", ANSWER_SECONDS),
    "clock lies": ("the device's clock went on", 0.0),
    "exception in prepare": ("the oven is cold", 0.0),
}
"""Ways in which a driver fails: words of the reason, and when at the earliest there is evidence of it, in seconds."""


@pytest.mark.parametrize("how", WAYS)
def test_a_driver_that_fails_is_reported_and_restarted_and_nobody_else_notices(
    device: BreakingDevice, neighbour: Neighbour, how: str
) -> None:
    words, late = WAYS[how]
    restarts = device.spu.info.restarts
    enough, values = threading.Event(), list[torch.Tensor]()
    thread = threading.Thread(target=lambda: values.extend(neighbour.use_until(enough)))
    thread.start()
    try:
        session = device.spu.open_session()
        device.break_once(how)
        watch = Undisturbed()
        if how in ("clock lies", "exception in prepare"):  # nobody asks, and yet it is found out
            with suppress(DeviceFault):  # it may come before the answer
                session.program(Rows(A), B, damping=DAMPING)
            eventually(lambda: words in device.spu.info.fault, "the fault is reported")
        else:
            with pytest.raises(DeviceFault) as caught:
                session.solve(Rows(A), B, damping=DAMPING, analog_time=LONG)
            assert words in caught.value.message
        assert watch.seconds < late + EVIDENCE_SECONDS
        device.assert_daemon_is_well()
        with pytest.raises(DeviceFault):
            session.read()
        eventually(lambda: device.spu.info.state == "halted", "the driver has been restarted")
        with pytest.raises(DeviceFault):  # what this session had programmed is gone
            session.read()
        device.assert_recovers(words, restarts + 1)
        with pytest.raises(SpuError, match="session"):
            session.read()
        session.close()
    finally:
        enough.set()
        thread.join()
        neighbour.assert_untouched(values)  # in any case: its twin follows it


def test_a_call_that_takes_as_long_as_was_announced_is_no_hang(device: BreakingDevice) -> None:
    with device.spu.session() as session:
        device.break_once("announced")
        begin = time.monotonic()
        reading = session.solve(Rows(A), B, damping=DAMPING, analog_time=LONG)
        assert time.monotonic() - begin >= 2.0 > ANSWER_SECONDS
        torch.testing.assert_close(reading.value, solution(B, DAMPING))
    assert device.spu.info.fault == ""


@pytest.mark.parametrize("how", ["hang in stage", "spin"])
def test_a_halt_does_not_wait_for_a_busy_driver(device: BreakingDevice, how: str) -> None:
    restarts = device.spu.info.restarts
    errors: list[Exception] = []
    with device.spu.session() as session:
        session.program(Rows(A), B, damping=DAMPING)

        def use() -> None:
            try:
                session.solve(Rows(A), B, damping=DAMPING, analog_time=1.0)
            except SpuError as error:
                errors.append(error)

        device.break_once(how)
        thread = threading.Thread(target=use)
        thread.start()
        eventually(lambda: not device.how.exists(), "the driver has begun to hang")
        watch = Undisturbed()
        device.spu.halt("in a hurry")
        took = watch.seconds
        thread.join(60.0)
    assert took < HALT_SECONDS + CALL_SECONDS, f"{took:.3f} s"
    assert isinstance(errors[0], (DeviceHalted, DeviceFault))
    device.assert_recovers("halted: killed", restarts + 1)


def test_a_halt_is_answered_at_once_while_the_driver_is_started_again(device: BreakingDevice) -> None:
    met = set[str]()
    for _ in range(5):  # it is in the fault state for 0.1 s only, in which nobody may get round to ask
        restarts = device.spu.info.restarts
        with device.spu.session() as session:
            device.break_once("segfault")
            with pytest.raises(DeviceFault):
                session.solve(Rows(A), B, damping=DAMPING, analog_time=LONG)
        while (state := device.spu.info.state) != "halted":
            if state not in met:
                watch = Undisturbed()
                device.spu.halt("while there is nothing to halt")
                assert watch.seconds < HALT_SECONDS + CALL_SECONDS
                met.add(state)
        device.assert_recovers("SIGSEGV", restarts + 1)
        if met == {"fault", "restarting"}:
            return
    raise AssertionError(f"it was only met {met}")


def test_a_device_that_finds_something_wrong_with_itself_is_not_used(
    device: BreakingDevice, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After a restart it is started once more; at the start of the daemon that is the end."""
    restarts = device.spu.info.restarts
    reasons = set()
    with device.spu.session() as session:
        device.break_once("exception", "self-test")
        with pytest.raises(DeviceFault):
            session.solve(Rows(A), B, damping=DAMPING, analog_time=LONG)

    def recovered() -> bool:
        info = device.spu.info
        reasons.add(info.fault)
        return info.state == "halted"

    eventually(recovered, "the driver has been restarted")
    words = "the device's self-test found: the reference"
    assert any(words in reason for reason in reasons)
    device.assert_recovers(words, restarts + 1)
    folder = tmp_path_factory.mktemp("d")
    (folder / "how").write_text("self-test")
    with pytest.raises(AssertionError, match=words):
        BreakingDevice(folder)


def test_a_device_is_calibrated_whenever_it_has_been_opened_if_that_is_asked_for(
    device: BreakingDevice, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert device.spu.info.calibrated is None
    assert device.spu.report()["calibrations"] == 0.0
    one = BreakingDevice(tmp_path_factory.mktemp("d"), "--calibrate")
    try:
        assert one.spu.info.calibrated == 0.0
        with one.spu.session() as session:
            session.program(Rows(A), B, damping=DAMPING)
            session.advance(7.0)
            one.break_once("exception", "calibration")
            with pytest.raises(DeviceFault):
                session.read()
        one.assert_recovers("the offsets are out of reach", 1)
        assert one.spu.info.calibrated == 7.0
        assert one.spu.report()["calibrations"] == 1.0
    finally:
        one.close()
