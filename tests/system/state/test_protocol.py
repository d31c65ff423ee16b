"""A state on its way, by hand, and in the memory of a daemon."""

from __future__ import annotations

import json
from dataclasses import replace

import google_crc32c
import pytest
import torch
from safetensors.torch import load

from host_client import connect
from spu_link import wire
from spu_link.aligned import place_of
from spu_link.errors import (
    CapacityExceeded,
    ProtocolError,
    SessionRequired,
    Unsupported,
    UploadCorrupt,
)
from spu_link.operators import Rows
from spu_link.packing import ABOUT
from spu_server.clock import SteppedClock
from spu_server.device import Device
from spu_server.drivers import saved
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.port import LocalDriver
from tests.system.device import memory_in
from tests.system.raw import Raw, eventually, refused
from tests.system.state.runs import (
    untouched,
)
from tngd.spu.v1 import spu_pb2 as pb


def restore(raw: Raw, *requests: pb.RestoreStateRequest) -> pb.RestoreStateResponse:
    return raw.stub.RestoreState(iter(requests), timeout=20.0)


def parts_of(raw: Raw, state: bytes, **header: int) -> list[pb.RestoreStateRequest]:
    return [
        pb.RestoreStateRequest(header=pb.StateHeader(session=raw.session, **{"nbytes": len(state), **header})),
        *(pb.RestoreStateRequest(chunk=chunk) for chunk in wire.numbered(wire.chunks([memoryview(state)], 1000))),
        pb.RestoreStateRequest(trailer=pb.StateTrailer(crc32c=google_crc32c.value(state))),
    ]


def test_broken_transfers_leave_nothing_behind(stepped, state):
    with untouched(stepped.address) as session, Raw(stepped.address) as raw:
        raw.session.CopyFrom(session.aio.lease.ref)
        good = parts_of(raw, state)
        with refused(UploadCorrupt, "crc32c"):
            restore(raw, *good[:-1], pb.RestoreStateRequest(trailer=pb.StateTrailer(crc32c=1)))
        with refused(UploadCorrupt, "offset"):
            restore(raw, good[0], good[2])
        with refused(UploadCorrupt, "the upload ended"):
            restore(raw, *good[:-2])
        with refused(UploadCorrupt, "announced"):
            restore(raw, *parts_of(raw, state, nbytes=len(state) - 1))
        with refused(ProtocolError, "chunk where a header"):
            restore(raw, *good[1:])
        for nbytes in (0, 1 << 40):
            with refused(CapacityExceeded, "a state of"):
                restore(raw, *parts_of(raw, state, nbytes=nbytes))
        raw.session.Clear()
        with refused(SessionRequired):
            restore(raw, *parts_of(raw, state))
        with refused(SessionRequired):
            list(raw.stub.SaveState(pb.SaveStateRequest(), timeout=20.0))
    assert not memory_in(stepped, "spu-state")


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(stepped):
    with connect(stepped.address) as spu, spu.session() as session:
        session.program(Rows(torch.ones(4, 200_000)), torch.ones(200_000))
        with Raw(stepped.address) as raw:
            raw.session.CopyFrom(session.aio.lease.ref)
            call = raw.stub.SaveState(pb.SaveStateRequest(session=raw.session), timeout=20.0)
            assert next(call).header.nbytes > 3_000_000
            call.cancel()
            raw.session.Clear()
        state = session.save_state()
        assert session.restore_state(state).shift == 0.0
        eventually(lambda: not memory_in(stepped, "spu-state"), "no state's memory is left")


async def test_a_driver_without_the_ability_says_so():
    class Plain(LocalDriver):
        async def start(self):
            return replace(await super().start(), features=("rows",))

    port = Plain("emulator", DriverOptions())
    device = Device(port, await port.start(), SteppedClock(), 1e-6, 1)
    session = device.open_session("me", 60.0)
    for call in (device.save(session), device.restore(session, memoryview(b"x"))):
        with pytest.raises(Unsupported, match="driver emulator can neither save nor restore"):
            await call
    await device.close()
    await port.close()


def test_tensors_come_back_to_where_they_were_in_memory(state):
    about = json.loads(bytes(load(state)[ABOUT].numpy()))
    back, standing = saved.decode(state, "emulator", 1000)
    assert back.program is not None
    assert place_of(back.program.drive) == about["places"]["program.1"]
    assert saved.encode(back, standing, "emulator") == state
