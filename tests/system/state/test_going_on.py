"""A device's whole state, saved and restored: what follows is the same to the bit."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest
import torch

from host_client import Session, aio, connect
from spu_link.errors import (
    NoProgram,
    ReadInPast,
)
from spu_link.operators import Kept, Rows
from spu_link.program import Reading
from tests.system.device import A, B, memory_in
from tests.system.state.runs import OPERATORS, Run, few_rows, large_dense, made, many_rows, same, stepped_inproc

HALF = 3
"""Solves before and after the interruption."""


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
