"""A driver's process that is slow to start, or cannot be started, is a fault of the device: the daemon goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from host_client import connect
from tests.daemon import Daemon, InstalledDaemon
from tests.system.device import SteadyDevice
from tests.system.raw import eventually

BEFORE_FORK = """
import os, time
from pathlib import Path

folder = Path(__file__).parent


def before_fork():
    while (folder / "hold").exists():
        (folder / "asked").touch()
        time.sleep(0.01)
    if (folder / "end").exists():
        (folder / "end").unlink()
        os._exit(1)


os.register_at_fork(before=before_fork)
"""
"""Lets the fork server wait before it forks while there is a file `hold`, and then end once if there is one `end`."""


class Switched(NamedTuple):
    """A daemon whose fork server heeds files in a folder."""

    daemon: InstalledDaemon
    folder: Path


@pytest.fixture
def switched(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Switched]:
    folder = tmp_path_factory.mktemp("d")
    (folder / "sitecustomize.py").write_text(BEFORE_FORK)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    with InstalledDaemon(folder / "s", "--clock", "stepped") as daemon:
        yield Switched(daemon, folder)
        (folder / "hold").unlink(missing_ok=True)


def test_clients_are_answered_while_a_driver_starts_and_it_starts_though_the_fork_server_ends(
    switched: Switched,
) -> None:
    daemon, folder = switched
    (folder / "hold").touch()
    (folder / "end").touch()
    with connect(daemon.address) as spu:
        daemon.driver_process().kill()
        eventually((folder / "asked").exists, "the fork server is to start a driver")
        assert spu.info.state == "restarting"
        (folder / "hold").unlink()
        eventually(lambda: spu.info.state == "halted", "another driver runs")
        assert not (folder / "end").exists()
        assert spu.info.restarts == 1
    SteadyDevice(daemon).assert_unharmed()


def test_a_daemon_that_is_ended_while_a_driver_starts_leaves_nothing_behind(switched: Switched) -> None:
    daemon, folder = switched
    (folder / "hold").touch()
    daemon.driver_process().kill()
    eventually((folder / "asked").exists, "the fork server is to start a driver")
    children = daemon.children()
    daemon.process.terminate()
    eventually(lambda: '"event": "stopping"' in daemon.log, "the daemon ends")
    (folder / "hold").unlink()
    assert daemon.process.wait(timeout=60.0) == 0
    assert '"event": "stopped"' in daemon.log
    assert "Traceback" not in daemon.log
    _, alive = psutil.wait_procs(children, timeout=30.0)
    assert not alive


def test_a_driver_that_cannot_be_started_is_started_when_it_can_be(daemon: Callable[..., Daemon]) -> None:
    one = daemon("--clock", "stepped")
    with one.without_descriptors():
        one.driver_process().kill()
        eventually(lambda: "cannot be started: [Errno 24] Too many open files" in one.log, "the reason is logged")
    eventually(lambda: "driver restarted" in one.log, "another driver runs")
    SteadyDevice(one).assert_unharmed()
