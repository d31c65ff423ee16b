"""However a daemon ends, nothing is left behind."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from host_client import aio, connect
from spu_link.errors import DeviceUnavailable, SessionExpired
from spu_link.operators import Rows
from tests.daemon import STOP_SECONDS, Daemon, InstalledDaemon
from tests.pressure import Undisturbed
from tests.system.device import SteadyDevice
from tests.system.raw import Raw, eventually, refused

SERVER = str(Path(sys.executable).with_name("spu-server"))

ROWS, DRIVE = Rows(torch.ones(1, 3)), torch.ones(3)


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledDaemon]:
    with InstalledDaemon(tmp_path_factory.mktemp("d") / "s", "--clock", "free", "--rate", "1000") as one:
        yield one


async def test_sigterm_finishes_short_readings_fails_long_ones_and_leaves_nothing_behind(installed):
    one = installed
    children = one.children()
    assert children
    async with await aio.connect(one.address) as spu:
        session = await spu.open_session()
        applied = await session.program(ROWS, DRIVE, damping=1.0, start="drive")
        await session.read()
        now = (await spu.info()).time
        short = asyncio.create_task(session.read(at=now + 1000.0))
        long = asyncio.create_task(session.read(at=now + 1e6))
        await spu.info()
        await spu.info()
        code, seconds = await asyncio.to_thread(one.stop)
        assert (await short).sequence == applied.sequence
        with pytest.raises(DeviceUnavailable, match=r"stopping|spu-server serve"):
            await long
        with pytest.raises(DeviceUnavailable):
            await session.read()
        await session.close()
    assert code == 0, one.log
    assert seconds < STOP_SECONDS
    assert not one.socket.exists()
    _, alive = psutil.wait_procs(children, timeout=30.0)  # the interpreter's own helpers see it end, and follow
    assert not alive


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_that_is_ended_while_it_starts_leaves_nothing_behind(tmp_path_factory, name):
    path = tmp_path_factory.mktemp("d") / "s"
    command = [SERVER, "serve", "--listen", f"unix:{path}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as starting:
        eventually(path.exists, "it has its address, and loads what computes")
        starting.send_signal(name)
        _, stderr = starting.communicate(timeout=60.0)
    assert starting.returncode == 0
    assert "Traceback" not in stderr
    assert list(path.parent.iterdir()) == []


def test_a_daemon_that_is_ended_while_its_device_does_not_answer_ends_well(tmp_path_factory):
    path = tmp_path_factory.mktemp("d") / "s"
    with socket.create_server(("127.0.0.1", 0)) as board:
        board.settimeout(60.0)
        address = f"address=tcp:127.0.0.1:{board.getsockname()[1]}"
        command = [SERVER, "serve", "--listen", f"unix:{path}", "--driver", "board", "--driver-option", address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as starting:
            silent, _ = board.accept()
            watch = Undisturbed()
            starting.terminate()
            out, stderr = starting.communicate(timeout=60.0)
            assert watch.seconds < STOP_SECONDS
        silent.close()
    assert (starting.returncode, out) == (0, "")
    assert "Traceback" not in stderr
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_daemon_ends_at_once(daemon, name):
    one = daemon()
    watch = Undisturbed()
    one.process.send_signal(name)
    assert one.process.wait(timeout=60.0) == 0
    assert watch.seconds < STOP_SECONDS
    assert '"event": "stopped"' in one.log


def test_a_killed_daemon_leaves_no_driver_behind_and_its_socket_can_be_taken_over(installed):
    one = installed
    SteadyDevice(one)
    with Raw(one.address) as raw:
        session = raw.open()
    children = one.children()
    one.kill()
    _, alive = psutil.wait_procs(children, timeout=30.0)
    assert not alive
    assert one.socket.exists()
    with Daemon(one.socket, "--clock", "stepped") as heir:
        SteadyDevice(heir).assert_unharmed()
        with Raw(heir.address) as raw:
            raw.session.CopyFrom(session)
            with refused(SessionExpired, "restarted"):
                raw.read()
            raw.session.Clear()
    assert not heir.socket.exists()


def test_a_driver_is_started_again_though_a_cleaner_has_removed_the_socket_that_it_is_forked_through(installed):
    sockets = [
        Path(connection.laddr) for child in installed.children() for connection in child.net_connections("unix")
        if str(connection.laddr).startswith(tempfile.gettempdir()) and "listener" in str(connection.laddr)
    ]  # fmt: skip
    (listener,) = set(sockets)
    listener.unlink()
    installed.driver_process().kill()
    eventually(lambda: "driver restarted" in installed.log, "another driver runs")
    with connect(installed.address) as spu:
        assert spu.info.restarts == 1
        with spu.session() as session:
            session.program(ROWS, DRIVE, damping=1.0, start="drive")
