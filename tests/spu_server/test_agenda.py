"""Events run in the order of device time, on both clocks."""

import asyncio
import gc
import time

import pytest

from spu_link.errors import DeviceHalted, DeviceUnavailable
from spu_server.agenda import Agenda
from spu_server.clock import FreeClock, SteppedClock

SECONDS = 30.0
"""Timeout of every wait."""


async def test_stepped_events_run_in_the_order_of_their_times_and_not_of_their_arrival():
    clock, seen = SteppedClock(), []
    agenda = Agenda(clock)

    async def note(at):
        seen.append((at, clock.now()))

    pending = [agenda.schedule(at, note) for at in (3.0, 1.0, 2.0, 1.0, 9.0)]
    agenda.schedule(clock.move(5.0), note)
    await asyncio.wait_for(asyncio.gather(*pending[:4]), SECONDS)
    assert seen[:4] == [(1.0, 1.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    assert not pending[4].done()
    await agenda.close()
    with pytest.raises(DeviceUnavailable):
        pending[4].result()


async def test_an_event_scheduled_by_an_event_runs_before_later_ones():
    clock, seen = SteppedClock(), []
    agenda = Agenda(clock)

    async def note(at):
        seen.append(at)

    async def spawn(at):
        agenda.schedule(at + 0.5, note)

    agenda.schedule(1.0, spawn)
    last = agenda.schedule(2.0, note)
    agenda.schedule(clock.move(2.0), note)
    await asyncio.wait_for(last, SECONDS)
    assert seen[:2] == [1.5, 2.0]
    await agenda.close()


async def test_free_events_wait_for_their_device_time_and_get_exactly_it():
    clock = FreeClock(rate=100.0)
    agenda = Agenda(clock)

    async def report(at):
        return at, clock.now()

    begin = time.monotonic()
    asked = clock.now() + 10.0
    reported, now = await asyncio.wait_for(agenda.schedule(asked, report), SECONDS)
    assert reported == asked
    assert now >= asked
    assert time.monotonic() - begin >= 0.09
    await agenda.close()


async def test_an_earlier_event_overtakes_the_one_that_is_waited_for():
    clock, seen = FreeClock(rate=100.0), []
    agenda = Agenda(clock)

    async def note(at):
        seen.append(at)

    late = agenda.schedule(1e9, note)
    await asyncio.sleep(0)
    await asyncio.wait_for(agenda.schedule(10.0, note), SECONDS)
    assert seen == [10.0]
    assert not late.done()
    await agenda.close()
    with pytest.raises(DeviceUnavailable):
        late.result()


async def test_a_failing_event_fails_its_waiter_and_no_other():
    clock = SteppedClock()
    agenda = Agenda(clock)

    async def fail(at):
        raise RuntimeError("broken")

    async def report(at):
        return at

    broken, sound = agenda.schedule(None, fail), agenda.schedule(None, report)
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(broken, SECONDS)
    assert await asyncio.wait_for(sound, SECONDS) == 0.0
    await agenda.close()


async def test_a_cancelled_event_does_not_run():
    clock, seen = SteppedClock(), []
    agenda = Agenda(clock)

    async def note(at):
        seen.append(at)

    cancelled, kept = agenda.schedule(1.0, note), agenda.schedule(2.0, note)
    cancelled.cancel()
    clock.move(2.0)
    agenda.schedule(None, note)
    await asyncio.wait_for(kept, SECONDS)
    assert 1.0 not in seen
    await agenda.close()


async def test_pending_events_can_be_failed_all_at_once():
    agenda = Agenda(SteppedClock())

    async def never(at):
        raise AssertionError("ran")

    pending = [agenda.schedule(at, never) for at in (1.0, 2.0)]
    agenda.fail_pending(DeviceHalted("stop"))
    for one in pending:
        with pytest.raises(DeviceHalted):
            await one
    await agenda.close()


async def test_a_driver_that_is_ended_during_an_event_does_not_end_the_agenda():
    agenda = Agenda(SteppedClock())

    async def driven(at):
        call = asyncio.create_task(asyncio.sleep(60.0))
        asyncio.get_running_loop().call_soon(call.cancel)
        await asyncio.shield(call)

    async def report(at):
        return at

    with pytest.raises(DeviceUnavailable, match="ended during this call"):
        await asyncio.wait_for(agenda.schedule(None, driven), SECONDS)
    assert await asyncio.wait_for(agenda.schedule(None, report), SECONDS) == 0.0
    await agenda.close()


async def test_that_nobody_waits_for_events_at_the_end_is_not_logged():
    agenda, begun, logged = Agenda(SteppedClock()), asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))

    async def last(at):
        begun.set()
        await asyncio.sleep(SECONDS)

    under_way, pending = agenda.schedule(None, last), agenda.schedule(1.0, last)
    await asyncio.wait_for(begun.wait(), SECONDS)
    await agenda.close()
    assert under_way.done()
    assert pending.done()
    del under_way, pending, agenda
    await asyncio.sleep(0)
    gc.collect()  # asyncio logs an error that nobody asked for when its future is gone
    assert logged == []
