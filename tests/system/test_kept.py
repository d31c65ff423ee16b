"""Programs that keep the device's operator: only the drive travels."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import torch

from host_client import connect
from spu_link import wire
from spu_link.errors import DeviceHalted, InvalidProgram, OperatorGone, Retryable, UnknownRole
from spu_link.operators import Dense, Kept, LinearRows, Rows
from spu_link.program import Program
from spu_server.clock import SteppedClock
from spu_server.device import Device
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.hosted import CheckedDriver
from spu_server.drivers.port import LocalDriver
from tests.daemon import Daemon
from tests.system.device import LONG, A, B, solution
from tests.system.raw import Raw, encoded, refused

N = 100_000
"""Drives of 800 KB: several chunks over gRPC, shared memory over a Unix socket."""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    with Daemon(tmp_path_factory.mktemp("d") / "s", "--clock", "stepped", "--listen", "127.0.0.1:0") as daemon:
        yield daemon


@pytest.fixture(params=["inproc:", "unix", "tcp"])
def session(request):
    if request.param == "inproc:":
        with connect("inproc:", clock="stepped") as spu, spu.session() as session:
            yield session
        return
    addresses = request.getfixturevalue("both").addresses
    address = next(a for a in addresses if a.startswith("unix:") == (request.param == "unix"))
    with connect(address) as spu, spu.session() as session:
        yield session


def large(seed: int) -> tuple[Rows, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return Rows(torch.randn(8, N, generator=generator) / N**0.5), torch.randn(N, generator=generator).double()


def exactly(operator: Rows, b: torch.Tensor, damping: float) -> torch.Tensor:
    a = operator.a.double()
    return (b - a.T @ torch.linalg.solve(a @ a.T + damping * torch.eye(len(a)).double(), a @ b)) / damping


def test_a_new_drive_is_solved_under_the_operator_that_the_device_has(session):
    operator, b = large(0)
    reading = session.solve(operator, b, damping=0.1, analog_time=300.0)
    before = session.uploaded_bytes
    kept = session.solve(Kept(reading.sequence, N), -2 * b, damping=0.2, analog_time=300.0, start="drive")
    assert session.uploaded_bytes - before == b.nbytes
    assert kept.sequence == reading.sequence + 1
    torch.testing.assert_close(kept.value, exactly(operator, -2 * b, 0.2), rtol=1e-6, atol=1e-6)
    # Any program of the row may be named, so that uploads may overlap answers.
    for sequence in (reading.sequence, kept.sequence, reading.sequence):
        again = session.solve(Kept(sequence, N), b, damping=0.1, analog_time=300.0, start=torch.ones(N))
        torch.testing.assert_close(again.value, exactly(operator, b, 0.1), rtol=1e-6, atol=1e-6)


def test_an_upload_ahead_of_a_kept_operator_is_one_with_nothing_to_send_ahead(session):
    applied = session.program(Rows(A), B, damping=0.5)
    with session.upload(Kept(applied.sequence, 3)) as upload:
        reading = upload.solve(-B, damping=0.5, analog_time=LONG)
        assert upload.sent_bytes == B.nbytes
    torch.testing.assert_close(reading.value, solution(-B, 0.5))


def test_an_operator_is_gone_once_another_one_has_taken_effect(session):
    first = session.program(Rows(A), B, damping=0.5)
    second = session.program(Rows(2 * A), B, damping=0.5)
    with pytest.raises(OperatorGone, match=f"{first.sequence} is not .*of programs {second.sequence} to") as e:
        session.program(Kept(first.sequence, 3), -B, damping=9.0)
    assert isinstance(e.value, Retryable)
    assert (e.value.field, e.value.found) == ("kept.sequence", str(first.sequence))
    with pytest.raises(OperatorGone, match="send the operator"):
        session.program(Kept(second.sequence + 1, 3), -B, damping=9.0)
    # Nothing has changed, and the operator that is there may still be kept.
    assert session.spu.info.sequence == second.sequence
    torch.testing.assert_close(session.solve(Kept(second.sequence, 3), B, damping=1.0, analog_time=LONG).value,
                               torch.linalg.solve(4 * A.T @ A + torch.eye(3).double(), B))  # fmt: skip


def test_a_halt_releases_the_operator(session):
    applied = session.program(Rows(A), B, damping=0.5)
    session.spu.halt("enough")
    with pytest.raises(DeviceHalted):
        session.program(Kept(applied.sequence, 3), B)
    with session.spu.session() as next_one, pytest.raises(OperatorGone, match="of programs none"):
        next_one.program(Kept(applied.sequence, 3), B)


def test_another_size_is_refused(session):
    applied = session.program(Dense(torch.eye(3)), B)
    with pytest.raises(InvalidProgram, match=r"kept.parameters is 2; expected 3"):
        session.program(Kept(applied.sequence, 2), B[:2])
    with pytest.raises(InvalidProgram, match=r"drive\[1\]"):
        session.program(Kept(applied.sequence, 3), torch.tensor([1.0, float("nan"), 2.0]))
    assert session.spu.info.sequence == applied.sequence


def test_the_device_says_that_it_keeps_operators(session):
    assert "kept" in session.spu.info.features


def test_a_kept_operator_cannot_be_multiplied_with_here():
    kept = Kept(5, 3)
    assert (kept.parameters, kept.nbytes, repr(kept)) == (3, 0, "Kept(5, 3)")
    for use in (lambda: kept.curvature(B), kept.gram, kept.dense, lambda: kept.adjoint(B), lambda: kept.dtype):
        with pytest.raises(InvalidProgram, match=r"Kept\(5, 3\) lie in the device"):
            use()
    for sequence, parameters in ((0, 3), (5, 0), (-1, 3), (True, 3), (5.0, 3)):
        with pytest.raises(InvalidProgram, match=r"kept\.(sequence|parameters) is"):
            Kept(sequence, parameters)


def test_headers_that_no_client_of_ours_sends_are_refused(both):
    with Raw(both.address) as raw:
        raw.open()
        header, data = encoded(Program(Rows(A), B))
        sequence = raw.upload(header, data)[0].applied.sequence
        kept, bytes_of_drive = encoded(Program(Kept(sequence, 3), B))
        for broken, error, match in (
            ({"sequence": 0}, InvalidProgram, "kept.sequence"),
            ({"parameters": 0}, InvalidProgram, "kept.parameters"),
            ({"parameters": 1 << 63}, InvalidProgram, "kept.parameters"),
            ({"parameters": 4}, InvalidProgram, "ROLE_DRIVE"),
        ):
            one = type(kept)()
            one.CopyFrom(kept)
            for name, value in broken.items():
                setattr(one.blocks[0].kept, name, value)
            with refused(error, match):
                raw.upload(one, bytes_of_drive)
        two = type(kept)()
        two.CopyFrom(kept)
        two.blocks.append(header.blocks[0])
        two.tensors.insert(0, header.tensors[0])
        two.tensors[0].block = 1
        with refused(InvalidProgram, "a kept block on its own"):
            raw.send(raw.messages(two, data))
        with_tensor = type(kept)()
        with_tensor.CopyFrom(kept)
        with_tensor.tensors.insert(0, header.tensors[0])
        with refused(UnknownRole):
            raw.send(raw.messages(with_tensor, data))
        assert raw.upload(kept, bytes_of_drive)[0].applied.sequence == sequence + 1


class SlowToCommit(LocalDriver):
    """A driver whose report that a program has taken effect comes when it may."""

    def __init__(self) -> None:
        super().__init__("emulator", DriverOptions())
        self.staged, self.committing, self.may_commit = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.may_commit.set()

    async def stage(self, header, payload) -> None:
        await super().stage(header, payload)
        self.staged.set()

    async def call(self, method, *arguments):
        result = await super().call(method, *arguments)
        if method is CheckedDriver.commit:
            self.committing.set()
            await self.may_commit.wait()
        return result


async def test_an_operator_that_goes_between_staging_and_taking_hold_is_not_kept():
    port = SlowToCommit()
    device = Device(port, await port.start(), SteppedClock(), 1e-6, 1)
    session = device.open_session("me", 60.0)

    def programming(operator):
        header, data = encoded(Program(operator, B, damping=0.5))
        layout = wire.layout(header, cells=100, max_bytes=10_000)
        return asyncio.create_task(device.program(session, layout, memoryview(bytearray(data))))

    first = (await programming(Rows(A))).applied.sequence
    # The client of another program gives up just when that takes effect …
    port.committing.clear()
    port.may_commit.clear()
    given_up = programming(Rows(2 * A))
    await port.committing.wait()
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    # … and the next one is staged before it has.
    port.staged.clear()
    keeping = programming(Kept(first, 3))
    await asyncio.wait_for(port.staged.wait(), 20.0)
    assert device.sequence == first
    port.may_commit.set()
    with pytest.raises(OperatorGone, match=f"{first + 1} to {first + 1}"):
        await keeping
    assert device.sequence == first + 1
    await device.advance(session, LONG)
    value = (await device.read(session, None, 0.0)).value
    torch.testing.assert_close(value, torch.linalg.solve(4 * A.T @ A + 0.5 * torch.eye(3).double(), B))
    await device.close()
    await port.close()


def test_it_is_the_same_for_every_form_of_operator(session):
    generator = torch.Generator().manual_seed(1)
    linear = LinearRows(torch.randn(4, 3, generator=generator), torch.randn(2, 4, 5, generator=generator), bias=True)
    n = linear.parameters
    b = torch.randn(n, generator=generator).double()
    for operator, precision in itertools.product(
        (linear, Rows(linear.dense()), Dense(linear.dense().T @ linear.dense())), (None, "int16")
    ):
        full = session.solve(operator, b, damping=0.3, analog_time=5.0, start="drive", precision=precision)
        kept = session.solve(Kept(full.sequence, n), b, damping=0.3, analog_time=5.0, start="drive")
        assert torch.equal(full.value, kept.value)
