"""Memory goes with its last use, however that ends."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from host_client import aio, connect
from spu_link.errors import (
    DeadlineExceeded,
    InvalidProgram,
)
from spu_link.operators import Rows
from tests.forked import Forked, script
from tests.pressure import time_enough
from tests.system.device import LONG, SteadyDevice
from tests.system.raw import SECONDS, eventually, refused
from tests.system.shared_memory.wide import DRIVE, EXPECTED, WIDE, place, small, upload
from tests.system.side import Refused, Side, memory, shared_in
from tngd.spu.v1 import spu_pb2 as pb


async def test_memory_in_use_outlives_its_registration(stepped):
    device = SteadyDevice(stepped)
    header, data = small()
    with device.raw() as raw, Side(raw) as side, memory(data, nbytes=4096) as descriptor:
        region = side.register(descriptor)
        header.reads.add(after=5.0)
        header.MergeFrom(
            pb.ProgramHeader(upload=place(region, data=data), readings=place(region, 1024, 24), session=raw.session)
        )
        request = pb.ProgramRequest(header=header, trailer=pb.ProgramTrailer())
        call = raw.stub.Program(iter([request]), timeout=SECONDS)
        assert next(call).applied.sequence == device.sequence + 1
        side.unregister(region)
        with refused(InvalidProgram, "no region"):
            upload(raw, small()[0], upload=place(region, data=data))
        assert shared_in(stepped)
        raw.advance(5.0)
        assert next(call).reading.place.offset == 1024
        assert np.isfinite(np.frombuffer(os.pread(descriptor, 24, 1024))).all()
        assert list(call) == []
        eventually(lambda: not shared_in(stepped), "the memory goes with its last use")
    SteadyDevice(stepped).assert_unharmed()


def test_a_connection_takes_its_regions_with_it_and_so_does_a_session(device):
    header, data = small()
    with device.raw() as raw, memory(data) as descriptor:
        with Side(raw) as side:
            region = side.register(descriptor)
        eventually(lambda: not shared_in(device.daemon), "the connection's memory is gone")
        with refused(InvalidProgram, "no region"):
            upload(raw, header, upload=place(region, data=data))
    for ttl, attempt in time_enough(0.2, Refused):  # where the session is over before
        with attempt, device.raw(ttl) as raw, Side(raw) as side, memory(data) as descriptor:
            side.register(descriptor)
            eventually(lambda: not shared_in(device.daemon), "the session's memory is gone")
            assert side.is_closed()


KILLED = """
import os, sys
import torch
from host_client import aio, connect
from spu_link.errors import SessionExpired
from tests.system.shared_memory.wide import DRIVE, WIDE

with connect(sys.argv[1]) as spu:
    session = spu.open_session(ttl=float(sys.argv[3]))
    try:
        session.program(WIDE, DRIVE, damping=0.5)
    except SessionExpired:
        sys.exit("too late")
    assert set(session.bytes_by_path) == {"shared-memory"}
    print("shared", flush=True)
    if sys.argv[2] == "solving":
        session.program(WIDE, DRIVE, not_before=session.device_time + 1e6)
    elif sys.argv[2] == "uploading":
        session.upload(WIDE)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("doing", ["nothing", "solving", "uploading"])
def test_a_killed_client_leaves_no_memory_behind(device, doing):
    for ttl, attempt in time_enough(0.5, TimeoutError):
        with attempt, Forked(script, KILLED, device.address, doing, str(ttl)) as client:
            said = client.stdout.readline().strip()
            held = shared_in(device.daemon)
            client.send_signal(signal.SIGKILL)
            client.wait()
            if not (said and held):
                raise TimeoutError("its session was over before it was killed")
            assert said == "shared"
            eventually(lambda: not shared_in(device.daemon), "nothing is left")
    with connect(device.address) as spu:
        eventually(lambda: spu.info.session_holder is None, "the device is free")
    device.settle()


def resources(daemon):
    """Open descriptors and resident bytes of the daemon and its driver, and memory files that the client maps: we."""
    family = daemon.processes()
    files = Path("/proc/self/maps").read_text().count("/memfd:")
    return sum(p.num_fds() for p in family), sum(p.memory_info().rss for p in family), files


def test_many_rounds_leave_neither_descriptors_nor_memory_behind(stepped):
    def rounds(count):
        for number in range(count):
            with connect(stepped.address) as spu, spu.session() as session:
                session.program(WIDE, DRIVE, damping=0.5, start="drive")
                session.read()
                if number % 2:
                    session.upload(WIDE).abandon()
        eventually(lambda: not shared_in(stepped), "no client's memory is left")

    rounds(10)
    before = resources(stepped)
    rounds(60)  # 29 MB of regions, did they stay
    eventually(lambda: resources(stepped)[0] <= before[0] + 2, "grpc has closed its connections, but for the last")
    after = resources(stepped)
    print(before, after)
    assert after[1] - before[1] < 60 * WIDE.nbytes
    assert after[2] <= before[2] + 2


def test_an_upload_that_is_broken_off_takes_its_region_out_of_use(stepped):
    async def scenario():
        async with await aio.connect(stepped.address) as spu, spu.session() as session:
            await session.advance(0.0)
            with pytest.raises(DeadlineExceeded):
                await session.program(WIDE, DRIVE, not_before=session.device_time + 1e6, timeout=0.5)
            await asyncio.to_thread(eventually, lambda: not shared_in(stepped), "nobody uses it any more")
            await session.program(WIDE, DRIVE, damping=0.5, start="drive")
            assert torch.equal((await session.read()).value, DRIVE)

    asyncio.run(scenario())


async def test_clients_that_go_while_their_programs_wait_for_the_driver_do_no_harm(stepped):
    """Each leaves with its memory while one program is being staged and others are queued behind it."""
    busy = Rows(torch.ones(64, 60_000))
    async with await aio.connect(stepped.address, timeout=20.0) as spu:
        for _ in range(15):
            session = await spu.open_session()
            programs = [
                asyncio.create_task(session.program(operator, torch.ones(operator.parameters).double(), damping=1.0))
                for operator in (busy, Rows(WIDE.a.clone()))
            ]
            await asyncio.sleep(0.004)
            await session.close()
            for program in programs:
                program.cancel()
            await asyncio.gather(*programs, return_exceptions=True)
        assert (await spu.info()).fault == ""
        async with spu.session() as session:
            reading = await session.solve(WIDE, DRIVE, damping=0.5, analog_time=LONG)
        torch.testing.assert_close(reading.value, EXPECTED, rtol=1e-6, atol=1e-9)
    eventually(lambda: not shared_in(stepped), "no memory of theirs is left")
