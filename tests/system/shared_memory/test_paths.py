"""Bytes go through memory shared with the daemon where they can."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import torch

from host_client import aio, connect
from host_client.links.remote_calls import SMALL_BYTES
from spu_link.operators import Rows
from tests.system.device import A, B
from tests.system.raw import eventually
from tests.system.shared_memory.wide import DRIVE, WIDE, solve
from tests.system.side import shared_in


def test_large_programs_and_readings_go_through_shared_memory(stepped):
    with connect(stepped.address) as spu, spu.session() as session:
        assert "shared-memory" in spu.info.features
        for _ in range(5):
            solve(session)
            assert torch.equal(session.read().value, session.read().value)
        nbytes = WIDE.nbytes + DRIVE.nbytes
        assert dict(session.bytes_by_path) == {"shared-memory": 5 * nbytes}
        assert session.uploaded_bytes == 5 * nbytes
        assert len(shared_in(stepped)) == 2  # one region, in the daemon and in the driver's process
    eventually(lambda: not shared_in(stepped), "nothing is left")


def test_small_programs_go_along_in_the_message(stepped):
    with connect(stepped.address) as spu, spu.session() as session:
        session.solve(Rows(A), B, damping=0.5, analog_time=1.0)
        assert dict(session.bytes_by_path) == {"grpc": A.nbytes + B.nbytes}
        assert A.nbytes + B.nbytes < SMALL_BYTES


def test_over_tcp_there_is_none(daemon):
    one = daemon("--listen", "127.0.0.1:0", "--clock", "stepped")
    with connect(one.addresses[1]) as spu, spu.session() as session:
        assert spu.info.memory_address == ""
        assert "shared-memory" not in spu.info.features
        solve(session)
        assert set(session.bytes_by_path) == {"grpc"}


def test_without_the_memory_socket_bytes_go_over_grpc(daemon, caplog):
    one = daemon("--clock", "stepped")
    with connect(one.address) as spu:
        path = Path(spu.info.memory_address.removeprefix("unix:"))
        path.unlink()
        path.write_text("in the way, so that the socket is not recreated")
        with spu.session() as session:
            solve(session)
            solve(session)
            assert set(session.bytes_by_path) == {"grpc"}
        assert caplog.text.count("bytes travel over gRPC") == 1
        path.unlink()
        eventually(path.is_socket, "the memory socket is back")
        with spu.session() as session:
            solve(session)
            assert set(session.bytes_by_path) == {"shared-memory"}


def test_the_memory_socket_is_for_its_owner_alone_and_goes_with_the_daemon(daemon):
    one = daemon()
    path = Path(f"{one.address.removeprefix('unix:')}.memory")
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    one.stop()
    assert not path.exists()


def test_a_program_too_large_for_a_region_goes_over_grpc(daemon):
    one = daemon("--clock", "stepped", "--max-bytes", str(WIDE.nbytes + DRIVE.nbytes))
    with connect(one.address) as spu, spu.session() as session:
        solve(session)
        assert set(session.bytes_by_path) == {"grpc"}


async def test_uploads_at_the_same_time_have_regions_of_their_own(stepped):
    async with await aio.connect(stepped.address) as spu, spu.session() as session:

        async def one(k):
            applied = await session.program(Rows(WIDE.a * k), DRIVE * k, damping=0.5, start="drive")
            return applied.sequence

        sequences = await asyncio.gather(*(one(k) for k in range(1, 9)))
        assert len(set(sequences)) == 8
        last = 1 + sequences.index(max(sequences))
        assert torch.equal((await session.read()).value, DRIVE * last)  # each program's own bytes
        assert set(session.bytes_by_path) == {"shared-memory", "grpc"}  # there are four
