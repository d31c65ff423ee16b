"""A device that is fed in the background: order, freshness, and the outcome of programs that are not wanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import torch

from host_client import aio
from host_client.loop import NoOlderThan, Sampling, TooStale
from host_client.loop.feed import Feed
from host_client.record.events import Event, Read, Uploaded
from spu_link.errors import InvalidProgram
from spu_link.operators import Rows
from spu_link.program import Program
from tests.pressure import time_enough
from tests.system.device import LONG, A, B, solution

RATE = 1000.0
"""τ per second of the free-running devices here."""


@asynccontextmanager
async def feeding(record: list[Event] | None = None, **device: object) -> AsyncIterator[tuple[Feed, aio.Session]]:
    # The heartbeat shares its loop with the device, which a busy machine may hold up for long when it first computes.
    async with await aio.connect("inproc:", timeout=60.0, **device) as spu, spu.session(ttl=300.0) as session:
        yield Feed(session, record=None if record is None else record.append), session


def submit(feed: Feed, drive: torch.Tensor = B, operator: Rows | None = None, **options: object) -> int:
    sampling = Sampling(**{"analog_time": LONG, **options})
    return feed.submit(Program(operator or Rows(A), drive, damping=0.5, start="drive"), sampling)


async def test_a_step_gets_the_reading_of_its_own_program() -> None:
    async with feeding(clock="stepped") as (feed, _):
        for k in range(1, 4):
            number = submit(feed, k * B)
            (arrived,) = await feed.readings(number, "program", timeout=60.0)
            assert (arrived.program, arrived.reading.age) == (number, LONG)
            torch.testing.assert_close(arrived.reading.value, solution(k * B, 0.5))


async def test_one_upload_is_in_flight_one_waits_and_the_newest_wins() -> None:
    events: list[Event] = []
    async with feeding(events, rate=RATE) as (feed, _):
        numbers = [submit(feed, k * B) for k in range(1, 6)]
        arrived = await feed.readings(numbers[-1], "program", timeout=60.0)
        torch.testing.assert_close(arrived[-1].reading.value, solution(5 * B, 0.5))
        assert feed.counts["dropped"] == 3
    outcomes = {one.number: one.outcome for one in events if isinstance(one, Uploaded)}
    assert outcomes == {1: "took effect", 2: "dropped", 3: "dropped", 4: "dropped", 5: "took effect"}


async def test_a_program_runs_its_schedule_before_the_next_takes_effect() -> None:
    events: list[Event] = []
    async with feeding(events, rate=RATE) as (feed, _):
        for _ in range(4):
            number = submit(feed, analog_time=15.0, readings=2, spacing=3.0, delay=2.0)
            await feed.readings(number, NoOlderThan(programs=1) if number > 1 else "newest", timeout=60.0)
        await feed.readings(number, "program", timeout=60.0)
    took_effect = [one.took_effect for one in events if isinstance(one, Uploaded)]
    read = [one for one in events if isinstance(one, Read)]
    assert [one.age for one in read] == [15.0, 18.0] * 4
    for before, after in pairwise(took_effect):
        assert before is not None
        assert after is not None
        assert after >= before + 15.0 + 3.0 + 2.0


async def test_a_program_of_the_step_before_will_do_where_that_is_fresh_enough() -> None:
    async with feeding(rate=RATE) as (feed, _):
        for seconds, attempt in time_enough(0.5, TimeoutError):
            with attempt:
                first = submit(feed)
                await feed.readings(first, "program", timeout=60.0)
                began = time.monotonic()
                second = submit(feed, 2 * B, analog_time=RATE * seconds)
                found = await feed.readings(second, NoOlderThan(programs=1), timeout=60.0)
                if time.monotonic() - began > seconds:
                    raise TimeoutError("the second may have been read by now")
                assert [one.program for one in found] == [first]
                third = submit(feed, 3 * B)
                (arrived,) = await feed.readings(third, NoOlderThan(programs=1), timeout=60.0)
                assert arrived.program == second
                assert time.monotonic() - began > seconds  # it had to wait for the second


async def test_readings_that_belong_together_are_taken_when_all_have_come() -> None:
    async with feeding(rate=RATE) as (feed, _):
        for k in range(1, 5):
            number = submit(feed, k * B, analog_time=LONG, readings=3, spacing=RATE * 0.02)
            found = await feed.readings(number, NoOlderThan(programs=1), timeout=20.0, together=True)
            assert len(found) == 3
            (program,) = {one.program for one in found}
            assert program >= number - 1
        number = submit(feed, analog_time=1e9, readings=3)
        (again,) = {one.program for one in await feed.readings(number, "newest", timeout=20.0, together=True)}
        assert number - 2 <= again < number


async def test_the_newest_reading_never_waits_once_there_is_one() -> None:
    async with feeding(rate=RATE) as (feed, _):
        first = submit(feed)
        (one,) = await feed.readings(first, "newest", timeout=60.0)
        for _ in range(3):
            number = submit(feed, analog_time=1e9)
            (again,) = await asyncio.wait_for(feed.readings(number, "newest", timeout=60.0), 30.0)
            assert again is one


@pytest.mark.parametrize("limit", [NoOlderThan(tau=100.0), NoOlderThan(milliseconds=100.0)])
async def test_a_reading_grows_too_old(limit: NoOlderThan) -> None:
    async with feeding(rate=RATE) as (feed, _):

        async def fresh(drive: torch.Tensor) -> int:
            for seconds, attempt in time_enough(1.0, TooStale, TimeoutError):
                with attempt:
                    number = submit(feed, drive)
                    arrived = await feed.readings(number, limit, timeout=seconds)
                    if arrived[-1].program != number:
                        raise TimeoutError("it came late, and was taken by the attempt after")
            return number

        number = await fresh(B)
        await asyncio.sleep(0.15)
        with pytest.raises(TooStale, match=r"within 0.05 s"):
            await feed.readings(number, limit, timeout=0.05)
        await fresh(2 * B)


async def test_periodic_readings_come_at_the_multiples_whatever_is_uploaded_when() -> None:
    events: list[Event] = []
    async with feeding(events, rate=RATE) as (feed, _):
        for k in range(1, 6):
            number = submit(feed, k * B, analog_time=7.0, period=20.0)
            (arrived,) = await feed.readings(number, "program", timeout=60.0)
            async with asyncio.timeout(30.0):
                while sum(isinstance(one, Read) and one.sequence == arrived.reading.sequence for one in events) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
    read = [one for one in events if isinstance(one, Read)]
    assert len(read) >= 10
    assert all(one.time == one.asked == 20.0 * round(one.time / 20.0) for one in read)
    assert [one.time for one in read] == sorted({one.time for one in read})
    assert len({one.sequence for one in read}) == 5


async def test_on_a_stepped_clock_the_same_steps_give_the_same_bits() -> None:
    async def run(freshness: object) -> list[torch.Tensor]:
        values = []
        async with feeding(clock="stepped", seed=3) as (feed, _):
            for k in range(1, 5):
                sampling = Sampling(3.3, readings=2, spacing=0.1, delay=0.2)
                number = feed.submit(Program(Rows(A), k * B, damping=0.5, noise=1e-2), sampling)
                arrived = await feed.readings(number, freshness, timeout=60.0)  # type: ignore[arg-type]
                values += [one.reading.value for one in arrived]
        return values

    first = await run("program")
    for freshness in ("program", "newest", NoOlderThan(programs=1)):
        for one, other in zip(first, await run(freshness), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


async def test_a_refused_program_raises_in_the_step_and_the_next_one_goes_on() -> None:
    async with feeding(clock="stepped") as (feed, _):
        number = submit(feed, B * float("nan"))
        with pytest.raises(InvalidProgram, match="drive"):
            await feed.readings(number, "program", timeout=60.0)
        number = submit(feed)
        (arrived,) = await feed.readings(number, "program", timeout=60.0)
        torch.testing.assert_close(arrived.reading.value, solution(B, 0.5))


async def test_a_refusal_is_raised_though_an_older_reading_would_do() -> None:
    async with feeding(rate=RATE) as (feed, _):
        await feed.readings(submit(feed), "newest", timeout=60.0)
        number = submit(feed, B * float("nan"))

        async def steps() -> None:
            for _ in range(1000):
                await feed.readings(number, "newest", timeout=60.0)
                await asyncio.sleep(0.005)

        with pytest.raises(InvalidProgram, match="drive"):
            await steps()


async def test_an_operator_that_is_kept_does_not_travel_again() -> None:
    events: list[Event] = []
    operator = Rows(A)
    async with feeding(events, clock="stepped") as (feed, _):
        for k in range(1, 4):
            number = feed.submit(Program(operator, k * B, damping=0.5, start="drive"), Sampling(LONG), unchanged=k > 1)
            (arrived,) = await feed.readings(number, "program", timeout=60.0)
            torch.testing.assert_close(arrived.reading.value, solution(k * B, 0.5))
    uploads = [one for one in events if isinstance(one, Uploaded)]
    assert [one.kept for one in uploads] == [False, True, True]
    assert [one.nbytes for one in uploads] == [A.nbytes + B.nbytes, B.nbytes, B.nbytes]


async def test_an_operator_that_is_gone_travels_again() -> None:
    operator = Rows(A)
    async with feeding(clock="stepped") as (feed, session):
        number = feed.submit(Program(operator, B, damping=0.5), Sampling(1.0))
        await feed.readings(number, "program", timeout=60.0)
        await session.program(Rows(2 * A), B, damping=0.5)  # in addition to the feed
        number = feed.submit(Program(operator, B, damping=0.5, start="drive"), Sampling(LONG), unchanged=True)
        (arrived,) = await feed.readings(number, "program", timeout=60.0)
        torch.testing.assert_close(arrived.reading.value, solution(B, 0.5))


async def test_a_copied_operator_may_be_overwritten_at_once() -> None:
    async with feeding(rate=RATE) as (feed, _):
        first = submit(feed, analog_time=50.0)
        a = A.clone()
        operator = Rows(a)
        number = feed.submit(Program(operator, B, damping=0.5, start="drive"), Sampling(LONG), copied=True)
        a.zero_()
        await feed.readings(first, "newest", timeout=60.0)
        arrived = await feed.readings(number, "program", timeout=60.0)
        torch.testing.assert_close(arrived[-1].reading.value, solution(B, 0.5))


async def test_an_operator_sent_ahead_may_be_overwritten_when_it_has_been_copied() -> None:
    async with feeding(rate=RATE) as (feed, _):
        a = A.clone()
        operator = Rows(a)
        feed.begin(operator, None, copied=True)
        number = feed.submit(Program(operator, B, damping=0.5, start="drive"), Sampling(LONG), copied=True)
        await feed.copied()
        a.zero_()
        (arrived,) = await feed.readings(number, "program", timeout=60.0)
        torch.testing.assert_close(arrived.reading.value, solution(B, 0.5))


async def test_closing_leaves_nothing_under_way() -> None:
    events: list[Event] = []
    async with feeding(events, rate=RATE) as (feed, session):
        submit(feed, analog_time=1e9)
        submit(feed, analog_time=1e9, period=20.0)
        operator = Rows(A)
        await feed.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        codes = [task.get_coro().cr_code for task in others]  # type: ignore[union-attr]
        assert not [code for code in codes if "host_client/loop" in code.co_filename]
        reading = await session.solve(operator, B, damping=0.5, analog_time=LONG, start="drive")
        torch.testing.assert_close(reading.value, solution(B, 0.5))
    assert "abandoned" in {one.outcome for one in events if isinstance(one, Uploaded)}
