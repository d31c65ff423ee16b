"""A device's whole state, saved and restored: what follows is the same to the bit."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import google_crc32c
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from host_client import Session, aio, connect
from spu_link import wire
from spu_link.aligned import place_of
from spu_link.errors import (
    CapacityExceeded,
    InvalidProgram,
    NoProgram,
    ProtocolError,
    ReadInPast,
    SessionRequired,
    Unsupported,
    UploadCorrupt,
)
from spu_link.operators import Dense, Kept, LayerRows, LinearRows, Operator, Rows
from spu_link.program import Reading
from spu_server import saved
from spu_server.clock import SteppedClock
from spu_server.device import Device
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.local import LocalDriver
from tests.system.device import A, B, memory_in
from tests.system.raw import Raw, eventually, refused
from tngd.spu.v1 import spu_pb2 as pb

HALF = 3
"""Solves before and after the interruption."""


def few_rows(g: torch.Generator) -> Operator:
    """Eigenvectors at once; operands promoted to float64."""
    inputs, cotangents = torch.randn(5, 2, 6, generator=g), torch.randn(4, 5, 2, 7, generator=g)
    return LayerRows([LinearRows(inputs, cotangents, bias=True), Rows(torch.randn(20, 31, generator=g))])


def many_rows(g: torch.Generator) -> Operator:
    """The Lanczos route, some solves later the eigenvectors."""
    return Rows(torch.randn(280, 900, generator=g) / 30)


def large(g: torch.Generator) -> Operator:
    """The Lanczos route over float32 operands used where they came to lie, which is at no boundary."""
    rows = (torch.randn(257, columns, generator=g) / 200 for columns in (1, 38_931))
    return LayerRows([Rows(a) for a in rows])


def dense(g: torch.Generator) -> Operator:
    a = torch.randn(30, 40, generator=g)
    return Dense(a.T @ a / 40)


def large_dense(g: torch.Generator) -> Operator:
    a = torch.randn(100, 300, generator=g).double()
    return Dense(a.T @ a / 100)


OPERATORS = [few_rows, many_rows, large, dense, large_dense]


@cache
def made(make: Callable[[torch.Generator], Operator], seed: int) -> Operator:
    return make(torch.Generator().manual_seed(seed))


class Run:
    """Solves that differ in everything that a program can differ in, the operator being kept three times of four."""

    def __init__(self, make: Callable[[torch.Generator], Operator], session: Session) -> None:
        self.make = make
        self.session = session
        self.sequence = 0

    def solves(self, first: int, last: int) -> list[Reading]:
        return [self.solve(number) for number in range(first, last)]

    def solve(self, number: int) -> Reading:
        operator = made(self.make, number // 4)
        g = torch.Generator().manual_seed(1000 + number)
        # In float64: readings in float32 would hide the last bits.
        b, x = (torch.randn(operator.parameters, generator=g, dtype=torch.float64) for _ in range(2))
        reading = self.session.solve(
            Kept(self.sequence, operator.parameters) if number % 4 else operator,
            b,
            damping=0.1 + 0.01 * number,
            noise=1e-3,
            start=("keep", "keep", "drive", "keep", x)[number % 5],
            precision="int16" if self.make is many_rows else None,
            analog_time=(0.7, 5.3, 50.1)[number % 3],
            window=0.4 * (number % 2),
            not_before=self.session.device_time + 0.3,
        )
        self.sequence = reading.sequence
        return reading


def same(one: Reading, other: Reading) -> bool:
    """Times of two runs compare as numbers alone."""
    pairs = (one.time, other.time), (one.age, other.age), (one.window, other.window)
    return torch.equal(one.value, other.value) and all(float(a) == float(b) for a, b in pairs)


@contextmanager
def stepped_inproc(seed: int = 0, **options: object) -> Iterator[Session]:
    with connect("inproc:", clock="stepped", seed=seed, **options) as spu, spu.session() as session:
        yield session


@pytest.mark.parametrize("make", OPERATORS)
def test_two_halves_with_another_device_for_the_second_are_one_whole(make):
    with stepped_inproc() as session:
        whole = Run(make, session).solves(0, 2 * HALF)
    with stepped_inproc() as session:
        run = Run(make, session)
        assert all(map(same, run.solves(0, HALF), whole))
        state = session.save_state()
        # Saving has moved nothing.
        assert all(map(same, run.solves(HALF, 2 * HALF), whole[HALF:]))
    with stepped_inproc(seed=99) as session:
        restored = session.restore_state(state)
        assert (restored.shift, float(restored.time), restored.sequence) == (0.0, float(whole[HALF - 1].time), HALF)
        run = Run(make, session)
        run.sequence = restored.sequence
        second = run.solves(HALF, 2 * HALF)
        assert all(map(same, second, whole[HALF:]))
        assert [reading.sequence for reading in second] == [reading.sequence for reading in whole[HALF:]]


@pytest.mark.parametrize("make", [many_rows, large_dense])
@pytest.mark.parametrize("stretch", [0.5, 1e9], ids=["some steps", "too long for them"])
def test_the_way_to_the_eigenvectors_goes_on_where_it_was(make, stretch):
    """After so many Lanczos steps, or at a stretch too long, the emulator decomposes; from then on bits are others."""

    def readings(session: Session, count: int) -> list[Reading]:
        found = []
        for _ in range(count):
            session.advance(0.5)
            found.append(session.read())
        return found

    operator = made(make, 0)
    b = torch.randn(operator.parameters, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with stepped_inproc() as session, stepped_inproc(seed=1) as other:
        session.program(operator, b)
        session.advance(stretch)
        readings(session, 1)
        other.restore_state(session.save_state())
        assert all(map(same, readings(other, 10), readings(session, 10)))


def test_a_daemon_that_was_killed_goes_on_in_another_one(daemon):
    """One device after the other, for every operator: A from a client that shares memory, B over TCP."""
    first = daemon("--clock", "stepped", "--seed", "0")
    states, wholes = [], []
    with connect(first.address) as spu:
        session = spu.open_session()
        for make in OPERATORS:
            run = Run(make, session)
            run.solves(0, HALF)
            states.append((session.save_state(), run.sequence))
            wholes.append(run.solves(HALF, 2 * HALF))
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        session.close()
    second = daemon("--clock", "stepped", "--seed", "7", "--listen", "127.0.0.1:0")
    address = next(address for address in second.addresses if not address.startswith("unix:"))
    with connect(address) as spu, spu.session() as session:
        for index, (make, (state, sequence), whole) in enumerate(zip(OPERATORS, states, wholes, strict=True)):
            restored = session.restore_state(state)
            assert restored.shift == 0.0
            # A device that has done something already gives the program a number of its own.
            assert restored.sequence == (sequence if index == 0 else spu.info.sequence)
            run = Run(make, session)
            run.sequence = restored.sequence
            assert all(map(same, run.solves(HALF, 2 * HALF), whole)), make.__name__
    assert not memory_in(second, "spu-state")


def test_every_instant_may_be_that_of_saving():
    """Between a program and its readings, with events behind and ahead, at a start that has not moved yet."""

    def events(session: Session) -> Iterator[Reading | None]:
        operator = few_rows(torch.Generator().manual_seed(0))
        b = torch.randn(operator.parameters, generator=torch.Generator().manual_seed(1)).double()
        applied = session.program(operator, b, damping=0.1, noise=0.1, start="drive")
        yield None
        session.advance(0.7)
        yield None
        session.program(Kept(applied.sequence, operator.parameters), -b, damping=0.2, noise=0.1)
        yield None
        yield session.read()
        session.advance(1.1)
        yield session.read(window=0.6)
        session.advance(0.1)
        yield session.read()

    with stepped_inproc() as session:
        whole = list(events(session))
    for interruption in range(len(whole)):
        with stepped_inproc() as session, stepped_inproc(seed=5) as other:
            run = events(Either(session, other, interruption))
            for number, expected in enumerate(whole):
                found = next(run)
                assert (found is None) == (expected is None)
                if found is not None:
                    assert same(found, expected), (interruption, number)


class Either:
    """A session that moves to another device at its n-th call."""

    def __init__(self, session: Session, other: Session, calls: int) -> None:
        self.session, self.other, self.calls = session, other, calls

    def __getattr__(self, name: str) -> object:
        if self.calls == 0:
            assert self.other.restore_state(self.session.save_state()).shift == 0.0
            self.session = self.other
        self.calls -= 1
        return getattr(self.session, name)


def test_on_a_clock_that_has_passed_the_time_of_saving_everything_shifts_to_now():
    with stepped_inproc() as session:
        session.solve(Rows(A), B, damping=0.5, analog_time=1.0)
        session.advance(0.25)
        state = session.save_state()
        expected = session.solve(Rows(A), -B, damping=0.5, analog_time=1.0)
        session.advance(7.0)
        restored = session.restore_state(state)
        assert (restored.time, restored.shift) == (9.25, 8.0)
        session.advance(0.5)
        again = session.read(window=0.75)  # over an event of restoring, which was none
        assert (again.age, again.time) == (1.75, 9.75)
        session.restore_state(state)
        again = session.solve(Rows(A), -B, damping=0.5, analog_time=1.0)
        torch.testing.assert_close(again.value, expected.value)


def test_a_free_clock_shifts_everything_to_now():
    with stepped_inproc() as session:
        session.solve(Rows(A), B, damping=0.5, analog_time=1.0)
        state = session.save_state()
    with connect("inproc:", clock="free", rate=1000.0) as spu, spu.session() as session:
        before = spu.info.time
        restored = session.restore_state(state)
        assert before <= restored.time <= spu.info.time
        assert restored.shift == restored.time - 1.0
        reading = session.read()
        assert reading.age == pytest.approx(reading.time - restored.time + 1.0)


def test_a_device_that_has_done_nothing_has_a_state_too():
    with stepped_inproc(seed=3) as session:
        session.advance(2.0)
        state = session.save_state()
        expected = session.solve(Rows(A), B, damping=0.5, noise=1.0, analog_time=1.0)
    with stepped_inproc(seed=4) as session:
        session.program(Rows(2 * A), B)
        restored = session.restore_state(state)
        assert (restored.time, restored.shift, restored.sequence) == (2.0, 0.0, 0)
        with pytest.raises(NoProgram):
            session.read()
        assert same(session.solve(Rows(A), B, damping=0.5, noise=1.0, analog_time=1.0), expected)


async def test_a_window_is_void_once_a_state_is_restored():
    async with await aio.connect("inproc:", clock="stepped") as spu, spu.session() as session:
        await session.solve(Rows(A), B, damping=0.5, analog_time=1.0)
        state = await session.save_state()
        reading = asyncio.create_task(session.read(at=session.device_time + 2.0, window=1.5))
        await asyncio.sleep(0)  # it is on the agenda now
        await session.advance(1.0)
        assert (await session.restore_state(state)).shift == 1.0
        await session.advance(1.0)
        with pytest.raises(ReadInPast, match="a state was restored"):
            await reading
        assert float((await session.read()).time) == 3.0


# What is no state


@pytest.fixture(scope="module")
def state() -> bytes:
    with stepped_inproc() as session:
        session.solve(Rows(A), B, damping=0.5, noise=0.1, analog_time=1.0)
        return session.save_state()


@contextmanager
def untouched(address: str) -> Iterator[Session]:
    """A device that afterwards is what it was: program, time and bits."""
    with connect(address) as spu, spu.session() as session:
        before = session.solve(Rows(2 * A), B, damping=0.5, analog_time=1.0)
        yield session
        assert (spu.info.sequence, spu.info.time, spu.info.state) == (before.sequence, before.time, "running")
        assert same(session.read(), before)
        assert session.program(Kept(before.sequence, 3), B).sequence == before.sequence + 1


@pytest.mark.parametrize(
    ("spoilt", "match"),
    [
        (lambda state: b"x", "1 bytes of something else"),
        (lambda state: state[:-1], "something else"),
        (lambda state: state[:-40] + bytes([1]) * 40, "state.check is wrong"),
        (lambda state: save({"weight": torch.ones(3)}), "a file of tensors"),
    ],
)
def test_bytes_of_something_else_are_refused(stepped, state, spoilt, match):
    with untouched(stepped.address) as session, pytest.raises(InvalidProgram, match=match):
        session.restore_state(spoilt(state))


@pytest.fixture(scope="module")
def inproc() -> Iterator[Session]:
    with stepped_inproc() as session:
        session.program(Rows(A), B)
        yield session


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bit_of_a_state_may_be_another(state, inproc, data):
    position = data.draw(st.integers(0, len(state) - 1))
    spoilt = bytearray(state)
    spoilt[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InvalidProgram):
        inproc.restore_state(bytes(spoilt))


def forged(state: bytes, change: Callable[[dict, dict[str, Tensor]], None]) -> bytes:
    """A state by somebody who knows the format."""
    tensors = load(state)
    about = json.loads(bytes(tensors[saved.ABOUT].numpy()))
    del tensors[saved.CHECK]
    change(about, tensors)
    tensors[saved.ABOUT] = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    tensors[saved.CHECK] = saved._check(tensors)
    return save(tensors)


def test_a_forged_state_is_as_good_as_the_right_one_where_nothing_is_changed(state, inproc):
    inproc.restore_state(forged(state, lambda about, tensors: None))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda about, tensors: about.update(version=2), "state.version is 2"),
        (lambda about, tensors: about.update(driver="board"), "state.driver is 'board'; expected 'emulator'"),
        (lambda about, tensors: about["standing"].update(time=-1.0), "state.standing.time"),
        (lambda about, tensors: about["standing"].update(time=0.5), "after the time of saving"),
        (lambda about, tensors: about["standing"].update(operator_since=9), "operator is of no program"),
        (lambda about, tensors: about["standing"].update(running=False), "state.standing.running"),
        (lambda about, tensors: about.update(header=""), "without a program"),
        (lambda about, tensors: about.update(header="!"), "state.header"),
        (lambda about, tensors: about["facts"].update(steps=-1), "state.steps"),
        (lambda about, tensors: about["facts"].update(more=1), "state.more"),
        (lambda about, tensors: about["facts"].update(compute="cuda"), "state.compute is cuda"),
        (lambda about, tensors: about["facts"].update(time=5.0), "state.time"),
        (lambda about, tensors: tensors.update({"driver.state": torch.ones(2).double()}), "state.state"),
        (lambda about, tensors: tensors.update({"driver.state": tensors["driver.state"] / 0}), "state.state"),
        (lambda about, tensors: tensors.update({"driver.image": torch.ones(5).double()}), "state.image"),
        (lambda about, tensors: tensors.update({"driver.generator": torch.ones(5)}), "state.generator"),
        (lambda about, tensors: tensors.update({"program.0": torch.ones(2, 2)}), "state.program.0"),
        (lambda about, tensors: tensors.update({"program.0": tensors["program.0"] / 0}), "rows"),
        (lambda about, tensors: tensors.pop("program.1"), "state.places"),
        (lambda about, tensors: about["places"].update({"program.0": 3}), "state.places"),
    ],
)
def test_a_forged_state_is_refused_by_the_name_of_what_is_wrong(state, inproc, change, match):
    before = inproc.read()
    with pytest.raises(InvalidProgram, match=match):
        inproc.restore_state(forged(state, change))
    assert same(inproc.read(), before)


def test_a_state_that_is_too_large_for_the_device_is_refused(state):
    with stepped_inproc(cells=2) as session, pytest.raises(CapacityExceeded, match="3 cells, the device has 2"):
        session.restore_state(state)
    with stepped_inproc(max_bytes=100) as session, pytest.raises(CapacityExceeded, match="takes"):
        session.restore_state(bytes(2 << 20))


# The protocol


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
        raw.session.CopyFrom(session._session._ref)
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
            raw.session.CopyFrom(session._session._ref)
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
    about = json.loads(bytes(load(state)[saved.ABOUT].numpy()))
    back, standing = saved.decode(state, "emulator", 1000)
    assert back.program is not None
    assert place_of(back.program.drive) == about["places"]["program.1"]
    assert saved.encode(back, standing, "emulator") == state
