"""No call waits past its deadline, whatever has died in the middle of it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch import nn

from host_client import TNGD, Session, Spu, aio, connect
from host_client.loop import TooStale
from spu_link.errors import DeadlineExceeded, DeviceBusy, DeviceFault, DeviceUnavailable, SessionClosed, SpuError
from spu_link.operators import Rows
from tests.daemon import Daemon
from tests.pressure import Undisturbed
from tests.system.raw import eventually

SECONDS = 0.5
"""Deadline of every call."""

MARGIN = 1.5
"""Max time of a call on top of it, in seconds: to break off, and to say so."""

SMALL = Rows(torch.ones(1, 3)), torch.ones(3)
LARGE = Rows(torch.ones(20, 20_000)), torch.ones(20_000)
"""Goes through shared memory."""


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """Within, neither the daemon nor its driver runs; connections to it stay."""
    processes = daemon.processes()
    for one in processes:
        one.suspend()
    try:
        yield
    finally:
        for one in processes:
            one.resume()


def trained(session: Session, **options: Any) -> Callable[[], None]:
    """A step of a training that has taken one already."""
    model, criterion = nn.Linear(3, 2), nn.CrossEntropyLoss()
    optimizer = TNGD(model, criterion, session, lr=0.1, damping=0.1, analog_time=1.0, timeout=SECONDS, **options)

    def step() -> None:
        criterion(model(torch.ones(4, 3)), torch.zeros(4, dtype=torch.long)).backward()
        optimizer.step()

    step()
    return step


CALLS: dict[str, Callable[[Spu, Session, Callable[[], None]], object]] = {
    "connect": lambda spu, session, step: connect(spu.address, timeout=SECONDS),
    "info": lambda spu, session, step: spu.info,
    "open_session": lambda spu, session, step: spu.open_session(),
    "halt": lambda spu, session, step: spu.halt(),
    "program": lambda spu, session, step: session.program(*SMALL),
    "program, large": lambda spu, session, step: session.program(*LARGE),
    "solve": lambda spu, session, step: session.solve(*SMALL, analog_time=1.0),
    "solve, large": lambda spu, session, step: session.solve(*LARGE, analog_time=1.0),
    "solve, ahead": lambda spu, session, step: session.upload(LARGE[0]).solve(LARGE[1], analog_time=1.0),
    "read": lambda spu, session, step: session.read(),
    "advance": lambda spu, session, step: session.advance(1.0),
    "save_state": lambda spu, session, step: session.save_state(),
    "restore_state": lambda spu, session, step: session.restore_state(bytes(4 << 20)),
    "step": lambda spu, session, step: step(),
    "close": lambda spu, session, step: session.close(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_daemon_that_stands_still(stepped: Daemon, call: str) -> None:
    with connect(stepped.address, timeout=SECONDS) as spu:
        eventually(lambda: spu.info.session_holder is None, "nobody holds the device")
        session = spu.open_session()
        session.solve(*LARGE, damping=1.0, analog_time=1.0, timeout=20.0)
        session.solve(*SMALL, damping=1.0, analog_time=1.0, timeout=20.0)
        step = trained(session)
        with stopped(stepped):
            watch = Undisturbed()
            with pytest.raises((DeadlineExceeded, DeviceUnavailable, TooStale)):
                CALLS[call](spu, session, step)
            assert watch.seconds < SECONDS + MARGIN
        with suppress(SpuError):
            session.close()


def test_a_daemon_that_is_killed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In the middle of whatever waits, and before whatever comes after."""

    async def killed_while_all_wait() -> list[object]:
        async with await aio.connect(daemon.address, timeout=20.0) as spu, spu.session() as session:
            await session.solve(*SMALL, damping=1.0, analog_time=1.0)
            calls = [
                session.read(at=1e9, timeout=30.0),
                session.read(at=1e9, window=1.0, timeout=30.0),
                session.program(*SMALL, not_before=1e9, timeout=30.0),
                session.program(*LARGE, timeout=30.0),  # waits for the one before
            ]
            tasks = [asyncio.create_task(one) for one in calls]
            for _ in range(2):
                await spu.info()  # by its answer the daemon has the calls as well
            daemon.kill()
            return await asyncio.gather(*tasks, return_exceptions=True)

    with Daemon(tmp_path_factory.mktemp("d") / "s", "--clock", "stepped") as daemon:
        spu = connect(daemon.address, timeout=SECONDS)
        with spu.session() as session:
            step = trained(session)
        watch = Undisturbed()
        for error in asyncio.run(killed_while_all_wait()):
            assert isinstance(error, DeviceUnavailable), error
        assert watch.seconds < 10.0
        for name, call in list(CALLS.items())[:-1]:
            watch = Undisturbed()
            with pytest.raises(SessionClosed) if session_is_needed(name) else pytest.raises(DeviceUnavailable):
                call(spu, session, step)
            assert watch.seconds < SECONDS + MARGIN, name
        spu.close()


def session_is_needed(name: str) -> bool:
    return name not in ("connect", "info", "open_session", "halt")


def test_a_driver_that_is_killed_in_the_middle_of_a_step(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        Daemon(tmp_path_factory.mktemp("d") / "s", "--rate", "10") as daemon,
        connect(daemon.address) as spu,
        spu.session() as session,
    ):
        model, criterion = nn.Linear(3, 2), nn.CrossEntropyLoss()
        optimizer = TNGD(model, criterion, session, lr=0.1, damping=0.1, analog_time=600.0, timeout=30.0)
        criterion(model(torch.ones(4, 3)), torch.zeros(4, dtype=torch.long)).backward()
        kill = threading.Timer(0.5, daemon.driver_process().kill)
        kill.start()
        watch = Undisturbed()
        with pytest.raises(DeviceFault, match="SIGKILL"):
            optimizer.step()
        assert watch.seconds < 10.0
        kill.join()


NOTEBOOK = """
import asyncio, os, signal, sys
from host_client import connect

async def kernel():  # runs cells within its own event loop
    spu = connect(sys.argv[1], timeout=20.0)
    session = spu.open_session(ttl=3.0, holder="a notebook")
    print(session.advance(0.0) >= 0.0, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(kernel())
"""


def test_after_a_killed_kernel_the_error_says_how_long_the_device_is_busy(stepped: Daemon) -> None:
    with connect(stepped.address, timeout=20.0) as spu:
        eventually(lambda: spu.info.session_holder is None, "nobody holds the device")
        killed = subprocess.run(
            [sys.executable, "-c", NOTEBOOK, stepped.address],
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
        assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "True\n")
        with pytest.raises(
            DeviceBusy, match=r"held by 'a notebook', whose session lives for another [0-3]\.\d s"
        ) as busy:
            spu.open_session()
        assert 0.0 < busy.value.retry_after <= 3.0
        eventually(lambda: spu.info.session_holder is None, "the device is free again")
        spu.open_session().close()


def test_calls_of_a_session_that_was_closed_say_so(stepped: Daemon) -> None:
    with connect(stepped.address, timeout=20.0) as spu:
        session = spu.open_session()
        feed = session.feed()
        session.close()
        for call in (session.read, session.save_state, lambda: session.advance(1.0), lambda: feed.wait_back(1.0)):
            with pytest.raises(SessionClosed, match="closed in this process"):
                call()
