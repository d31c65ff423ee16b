"""Shared memory that is closed while a region is being asked for."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from host_client.links.memory import ANSWER_SECONDS, SharedMemory
from tngd.spu.v1 import spu_pb2 as pb


def opened() -> set[tuple[str, int]]:
    """Kinds and inodes of sockets and shared memory that are open here; gRPC may still be closing those of others."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            found.append((str(descriptor.readlink()).partition(":")[0], descriptor.stat().st_ino))
    return {(kind, inode) for kind, inode in found if kind in ("socket", "/memfd")}


async def test_a_region_asked_for_before_the_end_opens_nothing_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "memory"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        memory = SharedMemory(f"unix:{path}", pb.SessionRef(), 1 << 20)
        before = opened()
        taking = asyncio.create_task(memory.take(1000))
        await asyncio.sleep(0)  # it has begun, and its request has not
        memory.close()
        assert await taking is None
        assert opened() <= before
        assert not caplog.records


async def test_a_region_asked_for_is_given_up_at_the_end_and_the_next_socket_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        memory = SharedMemory(f"unix:{path}", pb.SessionRef(), 1 << 20)
        before = opened()
        taking = asyncio.create_task(memory.take(1000))
        daemon, _ = await asyncio.to_thread(listening.accept)
        with daemon:
            await asyncio.to_thread(daemon.recv, 1000)  # the request; there will be no answer
            ours = opened() - before - {("socket", os.fstat(daemon.fileno()).st_ino)}
            assert sorted(kind for kind, _ in ours) == ["/memfd", "socket"]
            memory.close()
            here, there = socket.socketpair()
            with here, there:
                here.setblocking(False)
                there.send(b"heard")
                async with asyncio.timeout(ANSWER_SECONDS / 2):
                    assert await asyncio.get_running_loop().sock_recv(here, 10) == b"heard"
                    assert await taking is None
            assert not ours & opened()
