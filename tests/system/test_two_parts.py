"""An upload in two parts: the operator ahead, and what is known last comes last."""

from __future__ import annotations

import time

import pytest
import torch

from host_client import aio, connect
from spu_link import wire
from spu_link.errors import (
    CapacityExceeded,
    DeadlineExceeded,
    InvalidProgram,
    ProtocolError,
    SessionExpired,
    UnknownRole,
    UploadCorrupt,
)
from spu_link.operators import Rows
from spu_link.program import Program
from tests.pressure import time_enough
from tests.system.device import LONG, A, B, SteadyDevice, solution, uploads_in
from tests.system.raw import Raw, eventually, refused
from tests.system.side import shared_in
from tngd.spu.v1 import spu_pb2 as pb

WIDE = Rows(torch.ones(4, 200_000))
"""3.2 MB: several chunks."""


@pytest.fixture
def device(stepped):
    device = SteadyDevice(stepped)
    yield device
    device.assert_unharmed()


def split(program: Program) -> tuple[pb.ProgramHeader, pb.ProgramHeader, bytes]:
    """Open header, late header and bytes."""
    header, operands = wire.operator_header(program.operator, None)
    late, rest = wire.late_header(program)
    return header, late, b"".join(wire.byte_views(operands + rest))


def parts(raw: Raw, header: pb.ProgramHeader, late: pb.ProgramHeader | None, data: bytes) -> list[pb.ProgramRequest]:
    import google_crc32c

    header.session.CopyFrom(raw.session)
    trailer = pb.ProgramTrailer(crc32c=google_crc32c.value(data), late=late)
    chunk = pb.Chunk(offset=0, data=data)
    return [pb.ProgramRequest(header=header), pb.ProgramRequest(chunk=chunk), pb.ProgramRequest(trailer=trailer)]


@pytest.mark.parametrize(
    "start", ["keep", "drive", torch.tensor([1.0, 2.0, 3.0]).double()], ids=["keep", "drive", "tensor"]
)
def test_what_is_late_counts_as_if_it_had_come_first(device, start):
    program = Program(Rows(A), B * 2, damping=0.5, noise=0.0, start=start)
    header, late, data = split(program)
    late.reads.add(after=0.0)
    with device.raw() as raw:
        applied, read = raw.send(parts(raw, header, late, data))
        assert applied.applied.sequence == device.sequence + 1
        value = torch.frombuffer(bytearray(read.chunk.data), dtype=torch.float64)
        if isinstance(start, torch.Tensor):
            assert torch.equal(value, start)
        elif start == "drive":
            assert torch.equal(value, B * 2)
        raw.advance(LONG)
        value = torch.frombuffer(bytearray(raw.read()[0].chunk.data), dtype=torch.float64)
        torch.testing.assert_close(value, solution(B * 2, 0.5), rtol=1e-9, atol=1e-9)
    device.settle()


LATE = {
    "a block": (lambda late: late.blocks.add(), ProtocolError, "late.blocks"),
    "a session": (lambda late: late.session.SetInParent(), ProtocolError, "late.session"),
    "a place for the upload": (lambda late: late.upload.SetInParent(), ProtocolError, "late.upload"),
    "an operand": (lambda late: late.tensors.add(role=pb.ROLE_ROWS), ProtocolError, "ROLE_ROWS"),
    "no drive": (lambda late: late.ClearField("tensors"), InvalidProgram, "program tensors"),
    "a drive twice": (lambda late: late.tensors.append(late.tensors[0]), UnknownRole, "ROLE_DRIVE"),
    "a drive of another length": (lambda late: late.tensors[0].shape.__setitem__(0, 2), InvalidProgram, "ROLE_DRIVE"),
    "a drive of no length": (lambda late: late.tensors[0].shape.__setitem__(0, 2**63), InvalidProgram, "ROLE_DRIVE"),
    "no start": (lambda late: late.ClearField("start"), InvalidProgram, "start"),
    "negative damping": (lambda late: late.MergeFrom(pb.ProgramHeader(damping=-1.0)), InvalidProgram, "damping"),
    "readings that never come": (lambda late: late.reads.add(after=float("inf")), InvalidProgram, "after"),
    "nothing": (lambda late: late.Clear(), InvalidProgram, "late.start"),
}


@pytest.mark.parametrize(("change", "error", "match"), LATE.values(), ids=LATE)
def test_a_bad_late_part_is_refused_and_leaves_no_trace(device, change, error, match):
    header, late, data = split(Program(Rows(A), B))
    change(late)
    with device.raw() as raw:
        with refused(error, match):
            raw.send(parts(raw, header, late, data))
        raw.renew()


def test_a_complete_header_takes_no_late_part(device):
    program = Program(Rows(A), B)
    header, tensors = wire.header_of(program)
    with device.raw() as raw, refused(ProtocolError, "complete"):
        raw.send(parts(raw, header, pb.ProgramHeader(damping=1.0), b"".join(wire.byte_views(tensors))))


def test_chunks_of_an_open_upload_have_a_bound(device):
    header, late, data = split(Program(Rows(A), B, start=B))
    with device.raw() as raw, refused(UploadCorrupt, "announced"):
        raw.send(parts(raw, header, late, data + b"x"))


# The public API, on every path.


@pytest.fixture(params=["shared-memory", "grpc", "in-process"])
def spu(request, daemon):
    if request.param == "in-process":
        with connect("inproc:", clock="stepped") as spu:
            yield spu, None
        return
    one = daemon("--clock", "stepped", "--listen", "127.0.0.1:0")
    with connect(one.address if request.param == "shared-memory" else one.addresses[1]) as spu:
        yield spu, one


def drive_of(session, value: float) -> None:
    """The device rests at a drive."""
    session.program(WIDE, torch.full((200_000,), value), damping=1.0, start="drive")


def test_the_operator_goes_ahead_and_the_rest_follows(spu, request):
    spu, _ = spu
    path = request.node.callspec.params["spu"]
    with spu.session() as session:
        with session.upload(WIDE) as upload:
            eventually(lambda: upload.sent_bytes == WIDE.nbytes, "the operator is there")
            assert upload.operator is WIDE
            reading = upload.solve(torch.ones(200_000), analog_time=3.0, damping=0.5, start="drive")
        again = session.solve(WIDE, torch.ones(200_000), analog_time=3.0, damping=0.5, start="drive")
        torch.testing.assert_close(reading.value, again.value, rtol=1e-6, atol=1e-7)
        assert (reading.sequence, reading.age) == (again.sequence - 1, 3.0)
        assert dict(session.bytes_by_path) == {path: 2 * (WIDE.nbytes + 800_000)}


def test_abandoning_leaves_nothing_behind_and_the_old_program_in_force(spu):
    spu, daemon = spu
    with spu.session() as session:
        drive_of(session, 2.0)
        sequence = spu.info.sequence
        upload = session.upload(WIDE)
        eventually(lambda: upload.sent_bytes == WIDE.nbytes, "the operator is there")
        upload.abandon()
        upload.abandon()
        with pytest.raises(ProtocolError, match="over"):
            upload.program(torch.ones(200_000))
        with pytest.raises(RuntimeError, match="mine"), session.upload(WIDE):
            raise RuntimeError("mine")
        with pytest.raises(InvalidProgram, match="drive"), session.upload(WIDE) as upload:
            upload.program(torch.ones(3))
        if daemon:
            eventually(lambda: not uploads_in(daemon), "no upload is left")
        assert spu.info.sequence == sequence
        assert torch.equal(session.read().value, torch.full((200_000,), 2.0))
    if daemon:
        eventually(lambda: not shared_in(daemon), "no shared memory is left")


def test_a_refusal_of_what_went_ahead_is_raised_at_the_end(spu):
    spu, _ = spu
    with spu.session() as session:
        for bad, error, match in (
            (Rows(torch.full((4, 200_000), float("nan"))), InvalidProgram, "rows"),
            ("not an operator", InvalidProgram, "operator"),
        ):
            upload = session.upload(bad)
            with pytest.raises(error, match=match):
                upload.program(torch.ones(200_000))
        drive_of(session, 1.0)


def test_what_the_device_cannot_hold_is_refused_before_it_is_sent(daemon):
    one = daemon("--clock", "stepped", "--listen", "127.0.0.1:0", "--cells", "1000")
    with connect(one.addresses[1]) as spu, spu.session() as session:
        upload = session.upload(WIDE)
        with pytest.raises(CapacityExceeded, match="200000 cells"):
            upload.program(torch.ones(200_000))
        assert upload.sent_bytes == 0


def test_a_client_may_take_its_time_between_the_parts_while_its_session_lives(spu):
    spu, _ = spu
    for ttl, attempt in time_enough(0.3, SessionExpired):
        with attempt, spu.session(ttl=ttl) as session, session.upload(WIDE) as upload:
            time.sleep(3.3 * ttl)  # the client differentiates; the heartbeat goes on
            assert upload.program(torch.ones(200_000), damping=1.0).sequence


async def test_a_deadline_holds_for_what_is_left(stepped):
    async with await aio.connect(stepped.address) as spu, spu.session() as session:
        await session.advance(0.0)
        upload = session.upload(WIDE)
        with pytest.raises(DeadlineExceeded):
            await upload.program(torch.ones(200_000), not_before=session.device_time + 1e6, timeout=0.3)
        await session.program(WIDE, torch.ones(200_000), damping=1.0)


def test_a_session_that_ends_ends_its_uploads(daemon):
    one = daemon("--clock", "stepped", "--listen", "127.0.0.1:0")
    with connect(one.addresses[1]) as spu:
        session = spu.open_session()
        upload = session.upload(WIDE)
        eventually(lambda: upload.sent_bytes == WIDE.nbytes, "the operator is there")
        session.close()
        with pytest.raises(SessionExpired, match="closed"):
            upload.program(torch.ones(200_000))
        eventually(lambda: not uploads_in(one), "no upload is left")
