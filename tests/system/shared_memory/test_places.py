"""Regions and places in them: what a client may say about its memory, and what is refused."""

from __future__ import annotations

import fcntl
import os
import socket

import numpy as np
import pytest

from spu_link.errors import (
    CapacityExceeded,
    InvalidProgram,
    SessionExpired,
    SessionRequired,
    StaleSession,
)
from tests.daemon import Daemon
from tests.system.raw import SECONDS, Raw, refused
from tests.system.shared_memory.wide import place, small, upload
from tests.system.side import SEALS, Side, memory, rejected
from tngd.spu.v1 import spu_pb2 as pb


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
    device.settle()


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
            with rejected(StaleSession):
                side.register(descriptor)


def test_a_session_that_may_not(device):
    with memory(bytes(8)) as descriptor:
        with device.raw(ttl=None) as nobody, Side(nobody) as side, rejected(SessionRequired):
            side.register(descriptor)
        with device.raw(ttl=0.1) as raw, Side(raw) as side:
            raw.wait_until_free()
            with rejected(SessionExpired):
                side.register(descriptor)


@pytest.mark.parametrize(
    "seals",
    [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, SEALS | fcntl.F_SEAL_WRITE],
    ids=["not at all", "may grow", "may be sealed later", "may not be written"],
)
def test_memory_that_is_not_sealed_as_it_must_be(device, seals):
    with device.raw() as raw, Side(raw) as side:
        with memory(bytes(8), seals=seals) as descriptor, rejected(InvalidProgram, "sealed with"):
            side.register(descriptor)
        with memory(bytes(8)) as descriptor:  # the connection goes on
            assert side.register(descriptor)


def test_descriptors_that_are_no_memory(device, tmp_path):
    ours, theirs = socket.socketpair()
    (tmp_path / "file").touch()
    with device.raw() as raw, Side(raw) as side, ours, theirs, (tmp_path / "file").open("r+b") as file:
        for descriptor in (ours.fileno(), file.fileno()):
            with rejected(InvalidProgram, "memory is"):
                side.register(descriptor)
        with memory(bytes(8)) as descriptor:
            one_way = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
            with rejected(InvalidProgram, "one direction"):
                side.register(one_way)
            os.close(one_way)


def test_a_region_too_large_and_one_too_many(device, small_daemon):
    with Raw(small_daemon.address) as raw, memory(bytes(8), nbytes=10_001) as descriptor:
        raw.open()
        with Side(raw) as side, rejected(CapacityExceeded, "larger than the device takes"):
            side.register(descriptor)
    with device.raw() as raw, Side(raw) as side, Side(raw) as other, memory(bytes(8)) as descriptor:
        regions = [side.register(descriptor) for _ in range(8)]
        for one in (side, other):
            with rejected(CapacityExceeded, "8 regions"):
                one.register(descriptor)
        side.unregister(regions[0])
        assert other.register(descriptor)


@pytest.fixture(scope="module")
def small_daemon(tmp_path_factory):
    with Daemon(tmp_path_factory.mktemp("d") / "s", "--clock", "stepped", "--max-bytes", "10000") as one:
        yield one
