"""The addresses that the daemon listens on, and those that it refuses."""

import os
import socket
import stat
import subprocess
import sys
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from spu_link.addresses import channel_target
from spu_server.addresses import Endpoints
from spu_server.socket_files import AddressError
from tests.system.raw import SECONDS


@pytest.fixture
async def opened():
    """Makes endpoints: ``await opened(address, …)``."""
    made: list[Endpoints] = []

    async def bind(*addresses, insecure_remote=False):
        made.append(Endpoints())
        await made[-1].bind(addresses, insecure_remote=insecure_remote)
        return made[-1]

    yield bind
    for one in made:
        await one.stop(0.0)


@contextmanager
def locked_by_another(file):
    """A file that another process locks while this is entered."""
    hold = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        yield
        other.communicate(b"\n")


def serve_health(server):
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)


async def answers(address):
    async with grpc.aio.insecure_channel(
        channel_target(address), options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    return reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_ports_are_filled_in(opened):
    endpoints = await opened("127.0.0.1:0", "[::1]:0", "localhost:0")
    hosts, ports = zip(*(address.rsplit(":", 1) for address in endpoints.addresses), strict=True)
    assert hosts == ("127.0.0.1", "[::1]", "localhost")
    assert all(int(port) > 0 for port in ports)


async def test_a_socket_is_for_its_owner_alone_and_nothing_stays_of_it(opened, tmp_path):
    path = tmp_path / "s"
    endpoints = await opened(f"unix:{path}", "127.0.0.1:0")
    assert endpoints.addresses[0] == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await endpoints.stop(0.0)
    assert list(tmp_path.iterdir()) == []


async def test_a_socket_that_nobody_listens_on_is_taken_over(opened, tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    (tmp_path / "s.lock").write_text("12345\n")  # of a daemon that was killed
    await (await opened(f"unix:{path}")).start(serve_health)
    assert await answers(f"unix:{path}")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
async def test_a_socket_that_somebody_listens_on_is_left_alone(opened, tmp_path, kind):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(AddressError, match="in use"):
            await opened(f"unix:{path}")
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(str(path))
    assert [one.name for one in tmp_path.iterdir()] == ["s"]


async def test_two_daemons_never_share_a_path_though_the_socket_has_been_removed(opened, tmp_path, monkeypatch):
    await opened(f"unix:{tmp_path}/s")
    (tmp_path / "s").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AddressError, match="is in use by"):
        await opened(f"unix:../{tmp_path.name}/s")


async def test_a_path_that_is_listed_twice_is_reported_as_such(opened, tmp_path):
    with pytest.raises(AddressError, match="in use by this daemon itself: it is listed twice"):
        await opened(f"unix:{tmp_path}/s", f"unix:{tmp_path}/./s")


async def test_another_process_of_the_same_number_is_reported_by_its_number(opened, tmp_path):
    """As one in another container may have."""
    (tmp_path / "s.lock").write_text(f"{os.getpid()}\n")
    words = f"is in use by process {os.getpid()}"
    with locked_by_another(tmp_path / "s.lock"), pytest.raises(AddressError, match=words):
        await opened(f"unix:{tmp_path}/s")


async def test_a_daemon_that_ends_leaves_the_socket_of_its_heir_alone(opened, tmp_path):
    """An overlapping restart: the old one still ends its calls when the new one listens."""
    address = f"unix:{tmp_path}/s"
    old = await opened(address)
    await old.start(serve_health)
    old.withdraw()
    await (await opened(address)).start(serve_health)
    await old.stop(0.0)
    assert await answers(address)


async def test_a_daemon_whose_files_have_all_been_removed_leaves_those_of_another_alone(opened, tmp_path):
    address = f"unix:{tmp_path}/s"
    old = await opened(address)
    for one in tmp_path.iterdir():
        one.unlink()
    await (await opened(address)).start(serve_health)
    await old.stop(0.0)
    assert await answers(address)
    with pytest.raises(AddressError, match="is in use by"):
        await opened(address)


@pytest.mark.parametrize(
    "name", ["a b", "a%20b", "100%", "a#b", "a?b=c", "a:b", "é τ", "a'b\"c\\d", "-", "a\nb", "[x]"]
)
async def test_any_file_name_is_taken_as_it_is(opened, tmp_path, name):
    await (await opened(f"unix:{tmp_path}/{name}")).start(serve_health)
    assert {one.name for one in tmp_path.iterdir()} == {name, f"{name}.lock"}
    assert await answers(f"unix:{tmp_path}/{name}")


@pytest.mark.parametrize("path", ["s", "./s", "folder with # and %41/s", "../{here}/s", "//{absolute}/s"])
async def test_relative_paths_and_doubled_slashes_are_the_system_s(opened, tmp_path, monkeypatch, path):
    (tmp_path / "folder with # and %41").mkdir()
    monkeypatch.chdir(tmp_path)
    address = f"unix:{path.format(here=tmp_path.name, absolute=tmp_path)}"
    endpoints = await opened(address)
    await endpoints.start(serve_health)
    assert endpoints.addresses == [address]
    assert await answers(address)


async def test_the_longest_path_of_a_unix_socket_works_and_a_longer_one_is_refused(opened, tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    address = f"unix:{folder}/".ljust(len("unix:") + 107, "y")
    await (await opened(address)).start(serve_health)
    assert await answers(address)
    with pytest.raises(AddressError, match="has 108 bytes; a Unix socket's path has at most 107"):
        await opened(address + "y")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
async def test_an_address_that_others_can_reach_needs_to_be_asked_for_by_name(opened, address):
    with pytest.raises(AddressError, match="--insecure-remote"):
        await opened(address)
    endpoints = await opened(address, insecure_remote=True)
    assert not endpoints.addresses[0].endswith(":0")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("unix:/nonexistent/folder/s", "there is no folder /nonexistent/folder"),
        ("unix:/dev/null/s", "there is no folder /dev/null"),
        ("unix:/proc/s", "/proc/s.lock cannot be used"),
        ("unix:/dev/null", "no socket has this path"),
        ("unix:/tmp", "no socket has this path"),
        ("unix:/tmp/", "is that of a folder"),
        ("unix:/tmp/\udcff", "not valid UTF-8"),
        ("unix:/tmp/a\0b", "NUL"),
        ("nosuchhost.invalid:1", "not known"),
        ("é" * 64 + ":1", ""),
        (":0", ""),
    ],
)
async def test_an_address_that_cannot_be_listened_on_is_named(opened, address, reason):
    with pytest.raises(AddressError, match="cannot listen on") as caught:
        await opened(address)
    assert address in str(caught.value)
    assert reason in str(caught.value)
    assert "GRPC" not in str(caught.value)


@pytest.mark.parametrize("name", ["s", "s.lock"])
async def test_a_file_of_something_else_is_left_alone(opened, tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(AddressError, match="choose another path"):
        await opened(f"unix:{tmp_path}/s")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {name: "precious"}


async def test_a_port_in_use_is_refused_and_not_shared(opened):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(AddressError, match=f"{address}: Address already in use"):
            await opened(address)


async def test_nothing_stays_behind_when_one_of_several_addresses_is_refused(opened, tmp_path):
    for refused in ("0.0.0.0:0", f"unix:{tmp_path}/./s"):
        with pytest.raises(AddressError):
            await opened(f"unix:{tmp_path}/s", refused)
        assert os.listdir(tmp_path) == []
