"""Socket files under a daemon that runs: cleaners, other processes, and unusual names."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from host_client import connect
from spu_link.addresses import channel_target
from spu_link.errors import InvalidProgram
from tests.daemon import Daemon
from tests.system.raw import Raw, eventually
from tests.system.shared_memory.wide import solve
from tngd.spu.v1 import spu_pb2 as pb

NAMES = ["a b", "a%20b", "a#b", "a?b=c", "a:b", "é τ"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A daemon on sockets of odd names, started on an ASCII terminal."""
    folder = tmp_path_factory.mktemp("d")
    listen = [option for name in NAMES[1:] for option in ("--listen", f"unix:{folder}/{name}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONIOENCODING", "ascii")
        one = Daemon(folder / NAMES[0], "--clock", "stepped", *listen)
    with one:
        yield one


def path_of(address: str) -> Path:
    return Path(address.removeprefix("unix:"))


def test_clients_reach_a_daemon_at_any_file_name(odd):
    addresses = shlex.split(odd.ready)[1:]
    assert [path_of(address).name for address in addresses] == NAMES
    for address in addresses:
        with connect(address) as spu, spu.session() as session:
            solve(session)
            assert set(session.bytes_by_path) == {"shared-memory"}


def test_a_client_takes_a_relative_path(odd, monkeypatch):
    monkeypatch.chdir(odd.socket.parent)
    with connect(f"unix:{odd.socket.name}") as spu:
        assert spu.info.clock == "stepped"


@pytest.mark.parametrize(
    ("path", "reason"),
    [("x" * 108, "has 108 bytes; a Unix socket's path has at most 107"), ("\udcff", "UTF-8"), ("a\0b", "NUL")],
)
def test_a_path_that_no_socket_can_have_is_refused_by_the_client_too(path, reason):
    with pytest.raises(InvalidProgram, match=reason) as caught:
        connect(f"unix:{path}")
    assert caught.value.field == "address"


def test_removed_sockets_are_recreated_and_those_connected_stay(odd):
    memory = Path(f"{odd.socket}.memory")
    with connect(odd.address) as before:
        odd.socket.unlink()
        memory.unlink()
        Path(f"{odd.socket}.lock").unlink()
        eventually(lambda: odd.socket.exists() and memory.exists(), "the sockets are back")
        with connect(shlex.split(odd.ready)[-1]) as spu:  # on another socket
            assert spu.info.clock == "stepped"
        with Raw(channel_target(odd.address)) as raw:  # over a separate connection
            assert raw.info().clock == pb.CLOCK_KIND_STEPPED
        with before.session() as session:
            solve(session)
            assert set(session.bytes_by_path) == {"shared-memory"}
    assert odd.socket.stat().st_mode & 0o777 == memory.stat().st_mode & 0o777 == 0o600
    assert odd.log.count("had been removed and was recreated") >= 2


def test_sockets_are_recreated_when_the_daemon_can_open_files_again(daemon):
    one = daemon("--clock", "stepped")
    memory = Path(f"{one.socket}.memory")
    with one.without_descriptors():
        one.socket.unlink()
        memory.unlink()
        eventually(lambda: one.log.count("(Too many open files)") == 2, "the reason is logged for both")
    eventually(lambda: one.socket.exists() and memory.exists(), "the sockets are back")
    with connect(one.address) as spu, spu.session() as session:
        solve(session)
        assert set(session.bytes_by_path) == {"shared-memory"}


def test_a_socket_is_recreated_when_its_folder_is_back(daemon, tmp_path_factory):
    folder = tmp_path_factory.mktemp("f")
    address = f"unix:{folder}/s"
    one = daemon("--listen", address, "--clock", "stepped")
    shutil.rmtree(folder)
    eventually(lambda: f"there is no folder {folder}" in one.log, "the reason is logged")
    folder.mkdir()
    eventually((folder / "s").exists, "the socket is back")
    with Raw(channel_target(address)) as raw:
        assert raw.info().clock == pb.CLOCK_KIND_STEPPED


def test_sockets_that_another_process_has_replaced_are_left_to_it_and_reported(daemon):
    one = daemon("--clock", "stepped")
    with socket.socket(socket.AF_UNIX) as other:
        one.socket.unlink()
        Path(f"{one.socket}.lock").unlink()
        other.bind(str(one.socket))
        other.listen()
        eventually(lambda: "another file is in its place" in one.log, "it is reported")
        inode = one.socket.stat().st_ino
        assert one.stop()[0] == 0
        assert one.socket.stat().st_ino == inode
    assert sorted(os.listdir(one.socket.parent)) == ["s", "s.log"]


def test_a_memory_socket_that_is_not_ours_to_take_is_left_alone(daemon, tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")
    (folder / "s.memory").write_text("precious")
    with Daemon(folder / "s", "--clock", "stepped") as one:
        with connect(one.address) as spu:
            assert "shared-memory" not in spu.info.features
        assert "no shared memory" in one.log
    assert (folder / "s.memory").read_text() == "precious"


def test_a_second_daemon_is_refused_with_the_number_of_the_first(odd):
    odd.socket.unlink()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("spu-server")), "serve", "--listen", odd.address],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"{odd.address} is in use by process {odd.process.pid}" in done.stderr
    eventually(odd.socket.exists, "the first has recreated its socket")
