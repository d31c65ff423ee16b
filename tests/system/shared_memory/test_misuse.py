"""Nothing that a client says or writes into its memory hurts anybody."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
import torch

from spu_link.errors import (
    ProtocolError,
)
from spu_link.program import Program
from tests.system.device import LONG, B, solution
from tests.system.raw import encoded, eventually
from tests.system.shared_memory.wide import DRIVE, WIDE, place, small, solve, upload
from tests.system.side import Side, memory, rejected, shared_in
from tngd.spu.v1 import spu_pb2 as pb

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
        with rejected(ProtocolError, "packet"):
            side.ask(packet, [descriptor] * descriptors)
        assert side.is_closed()
        eventually(lambda: not shared_in(device.daemon), "nothing is left")


@pytest.mark.parametrize("count", [0, 2])
def test_a_registration_with_another_number_of_descriptors(device, count):
    with device.raw() as raw, Side(raw) as side, memory(bytes(8)) as descriptor:
        request = pb.MemoryRequest(session=raw.session, register=pb.MemoryRequest.Register())
        with rejected(ProtocolError, "descriptor"):
            side.ask(request.SerializeToString(), [descriptor] * count)
        assert side.is_closed()


def test_a_client_that_says_nothing_is_hung_up_on(device):
    with device.raw() as raw, Side(raw) as side:
        assert side.is_closed()


def test_a_crowd_of_silent_clients_keeps_nobody_out(device):
    with device.raw() as raw, ExitStack() as crowd:
        silent = [crowd.enter_context(Side(raw)) for _ in range(80)]
        assert all(one.is_closed() for one in silent)
    with device.session() as session:
        solve(session)
        assert set(session.bytes_by_path) == {"shared-memory"}
    device.settle()


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
    device.settle()


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
    device.settle()
