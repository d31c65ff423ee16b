"""Clients come and go, also without saying goodbye."""

from __future__ import annotations

import asyncio
import signal

import pytest
import torch

from host_client import aio, connect
from spu_link.errors import DeviceBusy, SessionExpired
from spu_link.operators import Rows
from spu_link.program import Program
from tests.forked import Forked, script
from tests.pressure import Undisturbed, time_enough
from tests.system.device import LONG, A, B, SteadyDevice
from tests.system.raw import SECONDS, Raw, encoded, eventually, refused
from tngd.spu.v1 import spu_pb2 as pb

ROWS, DRIVE = Rows(torch.ones(1, 3)), torch.ones(3)


HOLDER = """
import sys
import torch
from host_client import connect
from spu_link.operators import Rows

with connect(sys.argv[1], timeout=10.0) as spu:
    session = spu.open_session(ttl=float(sys.argv[2]))
    print("held", flush=True)
    sys.stdin.readline()
    try:
        session.program(Rows(torch.ones(1, 3)), torch.ones(3))
        print("done", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""

BUSY = """
import sys, time
from host_client import connect

ttl = float(sys.argv[2])
with connect(sys.argv[1]) as spu, spu.session(ttl=ttl) as session:
    print("held", flush=True)
    end = time.monotonic() + 4 * ttl
    total = 0
    while time.monotonic() < end:
        total += sum(range(100_000))  # holds the interpreter, but for its turns
    try:
        print("alive" if session.advance(0.0) >= 0 else "", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


class Client:
    """A process that holds the device."""

    def __init__(self, code: str, *arguments: str) -> None:
        self.process = Forked(script, code, *arguments)
        assert self.line() == "held"

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.__exit__()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_client_that_falls_silent_frees_the_device_after_the_time_to_live(stepped, how):
    device = SteadyDevice(stepped)
    for ttl, attempt in time_enough(1.0, TimeoutError):
        with attempt, Client(HOLDER, device.address, str(ttl)) as client, connect(device.address) as spu:
            client.process.send_signal(how)
            watch = Undisturbed()
            try:
                spu.open_session().close()
            except DeviceBusy as error:
                assert 0.0 < error.retry_after <= ttl  # noqa: PT017 - free is not wrong, but late
            else:
                raise TimeoutError("it was free before anybody asked")
            eventually(lambda: spu.info.session_holder is None, "the device is free")
            assert watch.seconds < ttl + 2.0
    device.assert_unharmed()


def test_a_zombie_changes_nothing_when_it_wakes_up(stepped):
    device = SteadyDevice(stepped)
    with Client(HOLDER, device.address, "0.3") as zombie, connect(device.address) as spu:
        zombie.process.send_signal(signal.SIGSTOP)
        eventually(lambda: spu.info.session_holder is None, "the device is free")
        with spu.session():
            zombie.process.send_signal(signal.SIGCONT)
            zombie.go_on()
            assert zombie.line() == "StaleSession"
    with Client(HOLDER, device.address, "0.3") as zombie, connect(device.address) as spu:
        zombie.process.send_signal(signal.SIGSTOP)
        eventually(lambda: spu.info.session_holder is None, "the device is free")
        zombie.process.send_signal(signal.SIGCONT)
        zombie.go_on()
        assert zombie.line() == "SessionExpired"
    device.assert_unharmed()


def test_what_a_zombie_waited_for_does_not_hold_up_the_next_session(stepped):
    device = SteadyDevice(stepped)
    for ttl, attempt in time_enough(0.2, TimeoutError):
        with attempt, Raw(device.address) as zombie:
            zombie.open(ttl)
            header, data = encoded(Program(ROWS, DRIVE))
            header.not_before = zombie.info().time + 1e6
            waiting = zombie.stub.Program(iter(zombie.messages(header, data)), timeout=SECONDS)
            reading = zombie.stub.Read(pb.ReadRequest(session=zombie.session, at=header.not_before), timeout=SECONDS)
            zombie.wait_until_free()
            device.settle()  # with a session and a program of its own
            for call in (waiting, reading):
                with refused(SessionExpired) as caught:
                    list(call)
                if "no call or heartbeat" in caught.value.details():
                    raise TimeoutError("the session was over before the call came")
                assert "ended while" in caught.value.details()
    device.assert_unharmed()


def test_the_heartbeat_keeps_a_session_while_the_client_computes(stepped):
    for ttl, attempt in time_enough(0.5, SessionExpired):
        with attempt, Client(BUSY, stepped.address, str(ttl)) as client, connect(stepped.address) as spu:
            said = client.line()
            if said == "SessionExpired":
                raise SessionExpired("a heartbeat came too late")
            assert said == "alive"
            eventually(lambda: spu.info.session_holder is None, "the device is released")


async def test_closing_a_session_ends_what_still_waits_in_it(stepped):
    SteadyDevice(stepped)
    async with await aio.connect(stepped.address) as spu:
        session = await spu.open_session()
        reading = asyncio.create_task(session.read(at=1e9, timeout=SECONDS))
        await spu.info()
        await spu.info()
        await session.close()
        with pytest.raises(SessionExpired):
            await asyncio.wait_for(reading, SECONDS)


def test_a_stale_reference_closes_nothing(stepped):
    SteadyDevice(stepped)
    with Raw(stepped.address) as zombie, connect(stepped.address) as spu:
        zombie.open(ttl=0.1)
        zombie.wait_until_free()
        with spu.session() as session:
            zombie.__exit__()
            session.advance(0.0)
            assert spu.info.session_holder
        zombie.session.Clear()


def test_a_blocking_call_that_is_interrupted_is_cancelled_at_the_device(stepped):
    SteadyDevice(stepped)
    with connect(stepped.address) as spu, spu.session() as session:
        solution = session.solve(Rows(A), B, damping=0.5, analog_time=LONG)

        def read() -> None:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            session.read(at=solution.time + 50.0)

        previous = signal.signal(signal.SIGALRM, _interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                read()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, previous)
        assert session.advance(100.0) == pytest.approx(solution.time + 100.0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
