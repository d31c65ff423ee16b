"""Memory shared with a daemon: bytes take that way where they can, and nothing a client does with it hurts anybody."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import torch

from host_client import aio, connect
from host_client.links.upload import SMALL_BYTES
from spu_link.errors import (
    CapacityExceeded,
    DeadlineExceeded,
    InvalidProgram,
    ProtocolError,
    SessionExpired,
    SessionRequired,
    StaleSession,
)
from spu_link.operators import Rows
from spu_link.program import Program
from tests.daemon import Daemon
from tests.system.device import LONG, A, B, SteadyDevice, solution
from tests.system.raw import SECONDS, Raw, encoded, eventually, refused
from tests.system.side import SEALS, Side, memory, shared_in, told
from tngd.spu.v1 import spu_pb2 as pb

N = 20_000
WIDE = Rows(torch.linspace(-1.0, 1.0, 2 * N, dtype=torch.float64).reshape(2, N) / N**0.5)
DRIVE = torch.linspace(1.0, 2.0, N, dtype=torch.float64)
DENSE = WIDE.a.T  # (N, 2)
EXPECTED = 2.0 * (DRIVE - DENSE @ torch.linalg.solve(0.5 * torch.eye(2).double() + WIDE.a @ DENSE, WIDE.a @ DRIVE))
"""(AᵀA + I/2)⁻¹ b, by Woodbury."""


def solve(session, **options):
    reading = session.solve(WIDE, DRIVE, damping=0.5, analog_time=LONG, **options)
    torch.testing.assert_close(reading.value, EXPECTED, rtol=1e-6, atol=1e-9)
    return reading


@pytest.fixture
def device(stepped):
    """On a stepped clock. That it is unharmed, and holds no memory of a client, is seen to after every test."""
    device = SteadyDevice(stepped)
    yield device
    device.assert_unharmed()
    eventually(lambda: not shared_in(stepped), "no client's memory is left")


# That it is used, and where.


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
        path.rename(path.with_suffix(".gone"))
        with spu.session() as session:
            solve(session)
            solve(session)
            assert set(session.bytes_by_path) == {"grpc"}
        assert caplog.text.count("bytes travel over gRPC") == 1
        path.with_suffix(".gone").rename(path)
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


# What a client may do wrong.


def place(region, offset=0, nbytes=None, data=b""):
    return pb.Place(region=region, offset=offset, nbytes=len(data) if nbytes is None else nbytes)


def small():
    return encoded(Program(Rows(A), B * 3, damping=0.5))


def upload(raw, header, **places):
    header.MergeFrom(pb.ProgramHeader(**places))
    header.session.CopyFrom(raw.session)
    return raw.send([pb.ProgramRequest(header=header, trailer=pb.ProgramTrailer())])


def test_by_hand(device):
    header, data = small()
    header.reads.add(after=0.0)
    with device.raw() as raw, Side(raw) as side, memory(data, nbytes=4096) as descriptor:
        region = side.register(descriptor)
        applied, read = upload(raw, header, upload=place(region, data=data), readings=place(region, 1024, 24))
        assert applied.applied.sequence == device.sequence + 1
        assert read.reading.place == place(region, 1024, 24)
        assert not read.HasField("chunk")
        value = np.frombuffer(os.pread(descriptor, 24, 1024))
        answer = raw.stub.Read(pb.ReadRequest(session=raw.session, into=place(region, 2048, 2048)), timeout=SECONDS)
        (again,) = list(answer)
        assert again.reading.place.nbytes == 24
        assert np.array_equal(np.frombuffer(os.pread(descriptor, 24, 2048)), value)
        (chunked,) = list(raw.stub.Read(pb.ReadRequest(session=raw.session, into=place(region, 0, 8)), timeout=SECONDS))
        assert chunked.chunk.data == value.tobytes()
    device.__init__(device.daemon)


PLACES = {
    "behind the end": ({"offset": 4090}, "upload.offset"),
    "longer than the region": ({"nbytes": 1 << 40}, "upload.offset"),
    "at the end of 64 bits": ({"offset": 2**64 - 1, "nbytes": 2**64 - 1}, "upload.offset"),
    "far away": ({"offset": 2**63}, "upload.offset"),
    "too short": ({"nbytes": 8}, "upload.nbytes"),
    "empty": ({"nbytes": 0}, "upload.nbytes"),
}


@pytest.mark.parametrize(("change", "match"), PLACES.values(), ids=PLACES)
def test_a_place_that_does_not_hold_the_upload(device, change, match):
    header, data = small()
    with device.raw() as raw, Side(raw) as side, memory(data, nbytes=4096) as descriptor:
        region = side.register(descriptor)
        with refused(InvalidProgram, match):
            upload(raw, header, upload=place(region, **{"nbytes": len(data), **change}))
        raw.renew()


@pytest.mark.parametrize(
    ("offset", "nbytes", "match"), [(4090, 24, "offset"), (0, 23, "nbytes"), (0, 1 << 40, "offset")]
)
def test_a_place_that_does_not_hold_the_readings(device, offset, nbytes, match):
    header, data = small()
    header.reads.add(after=0.0)
    with device.raw() as raw, Side(raw) as side, memory(data, nbytes=4096) as descriptor:
        region = side.register(descriptor)
        with refused(InvalidProgram, f"readings.{match}"):
            upload(raw, header, upload=place(region, data=data), readings=place(region, offset, nbytes))
        into = pb.ReadRequest(session=raw.session, into=place(region, 4096, 1))
        with refused(InvalidProgram, "into.offset"):
            list(raw.stub.Read(into, timeout=SECONDS))


def test_a_region_that_is_not_there(device):
    header, data = small()
    with device.raw() as raw, Side(raw) as side, memory(data) as descriptor:
        region = side.register(descriptor)
        for number in (0, region + 1, 2**64 - 1):
            with refused(InvalidProgram, "no region"):
                upload(raw, header, upload=place(number, data=data))
        side.unregister(region)
        side.unregister(region)  # twice is no error
        with refused(InvalidProgram, "no region"):
            upload(raw, header, upload=place(region, data=data))


def test_a_region_of_another_session(device):
    header, data = small()
    with device.raw() as first, Side(first) as side, memory(data) as descriptor:
        region = side.register(descriptor)
        first.stub.CloseSession(pb.CloseSessionRequest(session=first.session), timeout=SECONDS)
        with device.raw() as second:
            with refused(InvalidProgram, "no region"):
                upload(second, header, upload=place(region, data=data))
            with told(StaleSession):
                side.register(descriptor)


def test_a_session_that_may_not(device):
    with memory(bytes(8)) as descriptor:
        with device.raw(ttl=None) as nobody, Side(nobody) as side, told(SessionRequired):
            side.register(descriptor)
        with device.raw(ttl=0.1) as raw, Side(raw) as side:
            raw.wait_until_free()
            with told(SessionExpired):
                side.register(descriptor)


@pytest.mark.parametrize(
    "seals",
    [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, SEALS | fcntl.F_SEAL_WRITE],
    ids=["not at all", "may grow", "may be sealed later", "may not be written"],
)
def test_memory_that_is_not_sealed_as_it_must_be(device, seals):
    with device.raw() as raw, Side(raw) as side:
        with memory(bytes(8), seals=seals) as descriptor, told(InvalidProgram, "sealed with"):
            side.register(descriptor)
        with memory(bytes(8)) as descriptor:  # the connection goes on
            assert side.register(descriptor)


def test_descriptors_that_are_no_memory(device, tmp_path):
    ours, theirs = socket.socketpair()
    (tmp_path / "file").touch()
    with device.raw() as raw, Side(raw) as side, ours, theirs, (tmp_path / "file").open("r+b") as file:
        for descriptor in (ours.fileno(), file.fileno()):
            with told(InvalidProgram, "memory is"):
                side.register(descriptor)
        with memory(bytes(8)) as descriptor:
            one_way = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
            with told(InvalidProgram, "one direction"):
                side.register(one_way)
            os.close(one_way)


def test_a_region_too_large_and_one_too_many(device, small_daemon):
    with Raw(small_daemon.address) as raw, memory(bytes(8), nbytes=10_001) as descriptor:
        raw.open()
        with Side(raw) as side, told(CapacityExceeded, "larger than the device takes"):
            side.register(descriptor)
    with device.raw() as raw, Side(raw) as side, Side(raw) as other, memory(bytes(8)) as descriptor:
        regions = [side.register(descriptor) for _ in range(8)]
        for one in (side, other):
            with told(CapacityExceeded, "8 regions"):
                one.register(descriptor)
        side.unregister(regions[0])
        assert other.register(descriptor)


@pytest.fixture(scope="module")
def small_daemon(tmp_path_factory):
    with Daemon(tmp_path_factory.mktemp("d") / "s", "--clock", "stepped", "--max-bytes", "10000") as one:
        yield one


GARBAGE = {
    "noise": b"\xff" * 100,
    "an empty request": pb.MemoryRequest().SerializeToString() or b"\x00",
    "half a request": pb.MemoryRequest(
        session=pb.SessionRef(id="x" * 32), register=pb.MemoryRequest.Register()
    ).SerializeToString()[:20],
    "more than a request": b"\x00" * 100_000,
    "an answer": pb.MemoryResponse(region=3).SerializeToString(),
}


@pytest.mark.parametrize("packet", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("descriptors", [0, 1])
def test_garbage_ends_the_connection_and_what_it_registered(device, packet, descriptors):
    with device.raw() as raw, Side(raw) as side, memory(bytes(8)) as descriptor:
        side.register(descriptor)
        with told(ProtocolError, "packet"):
            side.ask(packet, [descriptor] * descriptors)
        assert side.is_closed()
        eventually(lambda: not shared_in(device.daemon), "nothing is left")


@pytest.mark.parametrize("count", [0, 2])
def test_a_registration_with_another_number_of_descriptors(device, count):
    with device.raw() as raw, Side(raw) as side, memory(bytes(8)) as descriptor:
        request = pb.MemoryRequest(session=raw.session, register=pb.MemoryRequest.Register())
        with told(ProtocolError, "descriptor"):
            side.ask(request.SerializeToString(), [descriptor] * count)
        assert side.is_closed()


def test_a_client_that_says_nothing_is_hung_up_on(device):
    with device.raw() as raw, Side(raw) as side:
        assert side.is_closed()


def test_a_crowd_of_silent_clients_keeps_nobody_out(device):
    from contextlib import ExitStack

    with device.raw() as raw, ExitStack() as crowd:
        silent = [crowd.enter_context(Side(raw)) for _ in range(80)]
        assert all(one.is_closed() for one in silent)
    with device.session() as session:
        solve(session)
        assert set(session.bytes_by_path) == {"shared-memory"}
    device.__init__(device.daemon)


def test_what_is_written_later_changes_nothing(device):
    header, data = small()
    with device.raw() as raw, Side(raw) as side, memory(data) as descriptor:
        region = side.register(descriptor)
        upload(raw, header, upload=place(region, data=data))
        os.pwrite(descriptor, np.full(len(data) // 8, np.nan).tobytes(), 0)
        raw.advance(LONG)
        read = raw.read()
        value = torch.frombuffer(bytearray(read[0].chunk.data), dtype=torch.float64)
        torch.testing.assert_close(value, solution(B * 3, 0.5), rtol=1e-9, atol=1e-9)
    device.__init__(device.daemon)


def test_a_client_that_scribbles_all_the_time_runs_what_was_verified(device):
    """Each upload is refused for a value that is not finite, or runs with finite values: never anything between."""
    header, data = encoded(Program(WIDE, DRIVE, damping=0.5, start="drive"))
    good, bad = np.frombuffer(data), np.full(len(data) // 8, np.nan)
    outcomes = set()
    with device.raw() as raw, Side(raw) as side, memory(data) as descriptor:
        region = side.register(descriptor)
        over = threading.Event()

        def scribble():
            while not over.wait(0.001):
                for values in (bad, good):
                    os.pwrite(descriptor, values.tobytes(), 0)

        scribbler = threading.Thread(target=scribble)
        scribbler.start()
        try:
            for _ in range(40):
                try:
                    upload(raw, header, upload=place(region, data=data))
                except grpc.RpcError as error:
                    assert "must be finite" in error.details()  # noqa: PT017 - either is right
                    outcomes.add("refused")
                    continue
                outcomes.add("ran")
                read = raw.read()
                assert np.isfinite(np.frombuffer(b"".join(part.chunk.data for part in read))).all()
        finally:
            over.set()
            scribbler.join()
        print(outcomes)
    device.__init__(device.daemon)


# Lifetimes.


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
    with device.raw(ttl=0.2) as raw, Side(raw) as side, memory(data) as descriptor:
        side.register(descriptor)
        eventually(lambda: not shared_in(device.daemon), "the session's memory is gone")
        assert side.is_closed()


KILLED = """
import os, sys
import torch
from host_client import aio, connect
from tests.system.test_shared_memory import DRIVE, WIDE

with connect(sys.argv[1]) as spu:
    session = spu.open_session(ttl=0.5)
    session.program(WIDE, DRIVE, damping=0.5)
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
    command = [sys.executable, "-c", KILLED, device.address, doing]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline().strip() == "shared"
        assert shared_in(device.daemon)
        client.send_signal(signal.SIGKILL)
        client.wait()
        eventually(lambda: not shared_in(device.daemon), "nothing is left")
    with connect(device.address) as spu:
        eventually(lambda: spu.info.session_holder is None, "the device is free")
    device.__init__(device.daemon)


def resources(daemon):
    """Open descriptors, and resident and shared bytes, of the daemon and its driver."""
    family = [psutil.Process(daemon.process.pid), *psutil.Process(daemon.process.pid).children(recursive=True)]
    return sum(p.num_fds() for p in family), sum(p.memory_info().rss for p in family), psutil.virtual_memory().shared


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
    after = resources(stepped)
    print(before, after)
    assert after[0] <= before[0] + 2  # a connection of grpc's may still be closing
    assert after[1] - before[1] < 60 * WIDE.nbytes
    assert after[2] - before[2] < 60 * WIDE.nbytes


def test_an_upload_that_is_broken_off_takes_its_region_out_of_use(stepped):
    async def scenario():
        async with await aio.connect(stepped.address) as spu, spu.session() as session:
            await session.advance(0.0)
            with pytest.raises(DeadlineExceeded):
                await session.program(WIDE, DRIVE, not_before=session.device_time + 1e6, timeout=0.5)
            eventually(lambda: not shared_in(stepped), "nobody uses it any more")
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
