"""A device in this process and a daemon behave alike, and a closed connection says so."""

import asyncio
import gc
import threading

import pytest
import torch

from host_client import aio, connect
from spu_link.errors import (
    CapacityExceeded,
    ClockMismatch,
    DeadlineExceeded,
    DeviceBusy,
    DeviceFault,
    DeviceHalted,
    DeviceUnavailable,
    InvalidProgram,
    NoProgram,
    ReadInPast,
    SessionExpired,
)
from spu_link.operators import Dense, LinearRows, Rows
from spu_server.drivers.emulator import Emulator
from tests.pressure import time_enough
from tests.system.raw import eventually

A = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
B = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
SOLUTION = torch.linalg.solve(A.T @ A + 0.5 * torch.eye(3, dtype=torch.float64), B)
OPTIONS = {"clock": "stepped", "seed": 5, "cells": 1000, "max_bytes": 100_000}


@pytest.fixture(scope="module")
def behind_a_daemon(tmp_path_factory):
    from tests.daemon import Daemon

    options = [part for name, value in OPTIONS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    with Daemon(tmp_path_factory.mktemp("d") / "s", *options) as daemon:
        yield daemon


@pytest.fixture(params=["inproc", "daemon"])
def spu(request):
    """A connection to a stepped device, either way."""
    if request.param == "inproc":
        with connect("inproc:", timeout=20.0, **OPTIONS) as spu:
            yield spu
    else:
        daemon = request.getfixturevalue("behind_a_daemon")
        with connect(daemon.address, timeout=20.0) as spu:
            spu.halt("a fresh start")
            yield spu


def test_it_says_what_it_is(spu):
    info = spu.info
    assert (info.driver, info.clock, info.rate, info.tau) == ("emulator", "stepped", 0.0, 1e-6)
    assert (info.cells, info.max_upload_bytes) == (1000, 100_000)
    assert set(info.features) >= {"dense", "rows", "linear", "conv2d", "window"}
    assert info.session_holder is None
    with spu.session(holder="me"):
        assert spu.info.session_holder == "me"
        assert spu.info.epoch == info.epoch


def test_it_solves(spu):
    with spu.session() as session:
        sequence = spu.info.sequence
        reading = session.solve(Rows(A), B, damping=0.5, analog_time=60.0)
        torch.testing.assert_close(reading.value, SOLUTION)
        assert (reading.sequence, reading.age, reading.window) == (sequence + 1, 60.0, 0.0)
        assert session.uploaded_bytes == A.nbytes + B.nbytes
        assert session.device_time == reading.time == spu.info.time
        assert spu.info.state == "running"


def test_a_program_goes_on_until_the_next_one(spu):
    with spu.session() as session:
        applied = session.program(Rows(A), B, damping=0.5, start="drive")
        assert torch.equal(session.read().value, B)
        session.advance(60.0)
        reading = session.read()
        torch.testing.assert_close(reading.value, SOLUTION)
        assert (reading.sequence, reading.age) == (applied.sequence, 60.0)
    with spu.session() as session:
        assert torch.equal(session.read().value, reading.value)


def test_readings_come_in_the_dtype_of_the_drive(spu):
    with spu.session() as session:
        for dtype in (torch.float32, torch.float64):
            assert session.solve(Rows(A), B.to(dtype), damping=0.5, analog_time=1.0).value.dtype == dtype


def test_a_reading_is_memory_of_its_own(spu):
    with spu.session() as session:
        session.program(Rows(A), B, start="drive")
        session.read().value.zero_()
        assert torch.equal(session.read().value, B)


def test_what_was_uploaded_may_be_changed_afterwards(spu):
    a, b = A.clone(), B.clone()
    with spu.session() as session:
        session.program(Rows(a), b, damping=0.5, start="drive")
        a.fill_(7.0)
        b.fill_(7.0)
        session.advance(60.0)
        torch.testing.assert_close(session.read().value, SOLUTION)


def test_the_number_of_cells_may_change_and_keep_means_keep(spu):
    def program(n, start="keep"):
        return session.program(Rows(torch.zeros(1, n)), torch.ones(n), start=start)

    with spu.session() as session:
        program(3, start=torch.tensor([1.0, 2.0, 3.0]))
        program(5)
        assert session.read().value.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0]
        program(2)
        assert session.read().value.tolist() == [1.0, 2.0]
        program(4)
        assert session.read().value.tolist() == [1.0, 2.0, 0.0, 0.0]
        program(4, start="drive")
        assert session.read().value.tolist() == [1.0] * 4


def test_windows_average_what_the_cells_do(spu):
    drive = torch.tensor([2.0], dtype=torch.float64)
    with spu.session() as session:  # without curvature the state grows by 2 a τ
        reading = session.solve(Rows(torch.zeros(1, 1)), drive, analog_time=10.0, window=4.0, start=torch.zeros(1))
        assert reading.window == 4.0
        assert reading.value.item() == pytest.approx(2.0 * 8.0)
        assert session.read().value.item() == pytest.approx(20.0)
        session.advance(3.0)
        assert session.read(window=3.0).value.item() == pytest.approx(2.0 * 11.5)


def test_a_window_over_programs_of_other_sizes_is_refused(spu):
    async def scenario():
        session = outer.aio
        reading = asyncio.create_task(session.read(at=now + 4.0, window=3.0))
        await reached(spu)
        await session.advance(2.0)
        await session.program(Rows(torch.zeros(1, 5)), torch.ones(5))
        await session.advance(2.0)
        return await reading

    with spu.session() as outer:
        outer.program(Rows(A), B)
        now = outer.device_time
        with pytest.raises(ReadInPast, match="number of cells has changed"):
            run(scenario())


async def reached(spu):
    """Calls made before have reached the device: these came after them on the same connection."""
    for _ in range(2):
        await spu.aio.info()


def run(coroutine):
    """On the loop of the blocking API, which its connections belong to."""
    from host_client.blocking.thread import wait

    return wait(lambda: asyncio.wait_for(coroutine, 20.0))


def test_not_before_waits_for_its_time(spu):
    with spu.session() as session:
        session.program(Rows(A), B, start="drive")
        now = session.advance(0.0)
        reading = session.solve(Rows(A), -B, damping=0.5, analog_time=2.0, not_before=now + 3.0, start="drive")
        assert reading.time == pytest.approx(now + 5.0)
        applied = session.program(Rows(A), B, not_before=now)  # that has passed, so now
        assert applied.time == reading.time


def test_readings_at_one_time_come_in_the_order_they_were_asked_for(spu):
    done = []

    async def ask(session, number, at):
        reading = await session.read(at=at)
        done.append(number)
        return reading

    async def scenario():
        session = outer.aio
        asked = [asyncio.create_task(ask(session, number, now + 1.0)) for number in range(8)]
        await reached(spu)
        await session.advance(1.0)
        return await asyncio.gather(*asked)

    with spu.session() as outer:
        outer.program(Rows(A), B, damping=0.5, noise=1.0, start="drive")
        now = outer.device_time
        readings = run(scenario())
    assert sorted(done) == list(range(8))
    assert {reading.time for reading in readings} == {now + 1.0}
    assert all(torch.equal(reading.value, readings[0].value) for reading in readings)  # no time, no noise


def test_later_readings_see_the_program_that_was_in_force(spu):
    async def scenario():
        session = outer.aio
        before, after = (asyncio.create_task(session.read(at=now + t)) for t in (1.0, 3.0))
        await reached(spu)
        await session.advance(2.0)
        applied = await session.program(Rows(A), B, start="drive")
        await session.advance(2.0)
        return (await before), (await after), applied

    with spu.session() as outer:
        first = outer.program(Rows(A), B, start="drive")
        now = first.time
        before, after, second = run(scenario())
    assert (before.sequence, before.age) == (first.sequence, 1.0)
    assert (after.sequence, after.age) == (second.sequence, 1.0)


REFUSALS = {
    "nothing to read": (lambda s: s.read(), NoProgram),
    "a value that is NaN": (lambda s: s.program(Rows(A), B * float("nan")), InvalidProgram),
    "an indefinite matrix": (lambda s: s.program(Dense(-torch.eye(2)), torch.ones(2)), InvalidProgram),
    "negative damping": (lambda s: s.program(Rows(A), B, damping=-1.0), InvalidProgram),
    "a drive too long": (lambda s: s.program(Rows(A), torch.ones(4)), InvalidProgram),
    "too many cells": (lambda s: s.program(Rows(torch.ones(1, 1001)), torch.ones(1001)), CapacityExceeded),
    "too many bytes": (lambda s: s.program(Rows(torch.ones(50, 1000)), torch.ones(1000)), CapacityExceeded),
    "too many cells in factors": (
        lambda s: s.program(LinearRows(torch.ones(1, 40), torch.ones(1, 1, 40), bias=False), torch.ones(1600)),
        CapacityExceeded,
    ),
    "a negative advance": (lambda s: s.advance(-1.0), InvalidProgram),
    "a reading at NaN": (lambda s: (s.program(Rows(A), B), s.read(at=float("nan"))), InvalidProgram),
    "a reading in the past": (lambda s: (s.program(Rows(A), B), s.advance(1.0), s.read(at=0.0)), ReadInPast),
    "a window too long": (lambda s: (s.program(Rows(A), B), s.advance(1.0), s.read(window=2.0)), ReadInPast),
    "a reading nobody brings about": (
        lambda s: (s.program(Rows(A), B), s.read(at=s.device_time + 1.0, timeout=0.2)),
        DeadlineExceeded,
    ),
    "a program nobody brings about": (
        lambda s: s.program(Rows(A), B, not_before=s.advance(0.0) + 1.0, timeout=0.2),
        DeadlineExceeded,
    ),
    "a second session": (lambda s: s.spu.open_session(), DeviceBusy),
    "a time to live out of range": (lambda s: s.spu.open_session(ttl=0.0), InvalidProgram),
    "a halt": (lambda s: (s.spu.halt("stop"), s.read()), DeviceHalted),
    "a closed session": (lambda s: (s.close(), s.read()), SessionExpired),
}


@pytest.mark.parametrize(("call", "error"), REFUSALS.values(), ids=REFUSALS)
def test_it_refuses_alike_and_goes_on(spu, call, error):
    with spu.session() as session, pytest.raises(error):
        call(session)
    with spu.session() as session:
        reading = session.solve(Rows(A), B, damping=0.5, analog_time=60.0)
        torch.testing.assert_close(reading.value, SOLUTION)


def test_the_same_seed_and_events_give_the_same_bits_either_way(daemon):
    def readings(address, **options):
        with connect(address, **options) as spu, spu.session() as session:
            session.program(Rows(A), B, damping=0.5, noise=1.0, start="drive")
            session.advance(1.5)
            return [session.read().value, session.solve(Rows(A), B, noise=0.1, analog_time=2.0, window=1.0).value]

    options = ("--clock", "stepped", "--seed", "11")
    over_grpc = readings(daemon(*options).address)
    here = readings("inproc:", clock="stepped", seed=11)
    other = readings("inproc:", clock="stepped", seed=12)
    assert all(torch.equal(a, b) for a, b in zip(over_grpc, here, strict=True))
    assert not torch.equal(here[0], other[0])


def test_a_cancelled_reading_leaves_no_window_open(monkeypatch):
    """Neither before the window begins, nor while it is open, nor at the moment it is being opened."""
    windows = set()
    open_window, close_window, read = Emulator.open_window, Emulator.close_window, Emulator.read

    def watched_open(emulator, window, start):
        open_window(emulator, window, start)
        windows.add(window)

    def watched_close(emulator, window):
        close_window(emulator, window)
        windows.discard(window)

    def watched_read(emulator, at, window=None):
        value = read(emulator, at, window)
        windows.discard(window)  # a reading that is taken before it can be cancelled closes its window
        return value

    monkeypatch.setattr(Emulator, "open_window", watched_open)
    monkeypatch.setattr(Emulator, "close_window", watched_close)
    monkeypatch.setattr(Emulator, "read", watched_read)

    async def scenario():
        async with await aio.connect("inproc:", clock="stepped") as spu, spu.session() as session:
            await session.program(Rows(A), B, damping=0.5)
            for moved in (0.0, 2.0):
                now = (await spu.info()).time
                reading = asyncio.create_task(session.read(at=now + 5.0, window=4.0))
                await asyncio.sleep(0)
                await session.advance(moved)
                assert bool(windows) == (moved > 1.0)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                await session.advance(10.0)
                await forgotten()
            for pauses in range(12):
                reading = asyncio.create_task(session.read(window=0.0, at=None))
                await reading
                await session.advance(2.0)
                reading = asyncio.create_task(session.read(window=1.0))
                for _ in range(pauses):
                    await asyncio.sleep(0)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                await session.advance(1.0)
                await session.read()
                await forgotten()

    async def forgotten():
        async with asyncio.timeout(10.0):
            while windows:  # noqa: ASYNC110 - the driver announces nothing
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(scenario(), 60.0))


def test_a_free_device_runs_by_itself():
    with connect("inproc:", clock="free", rate=1000.0) as spu, spu.session() as session:
        assert (spu.info.clock, spu.info.rate) == ("free", 1000.0)
        with pytest.raises(ClockMismatch):
            session.advance(1.0)
        reading = session.solve(Rows(A), B, damping=0.5, analog_time=100.0)
        torch.testing.assert_close(reading.value, SOLUTION)
        assert reading.age == 100.0
        assert reading.sent >= reading.time
        for seconds, attempt in time_enough(0.2, ReadInPast):
            with attempt:
                at = session.read().time + 1000.0 * seconds
                later = session.read(at=at, window=50.0)
        assert later.time == at
        torch.testing.assert_close(later.value, SOLUTION)


def test_a_driver_that_is_not_there_is_named():
    with pytest.raises(DeviceFault, match=r"abacus.*emulator"):
        connect("inproc:", driver="abacus")


@pytest.mark.parametrize(
    ("option", "said", "expected"),
    [
        ({"rate": -1}, "rate is -1: Input should be greater than 0", "greater than 0"),
        ({"clock": "broken"}, "clock is 'broken': Input should be 'free' or 'stepped'", "'free' or 'stepped'"),
        ({"rate": 5.0, "clock": "stepped"}, "rate: a rate belongs to a free-running clock", "a rate belongs"),
        ({"driver_option": {"bits": 8}}, "driver_option.bits is 8: Input should be a valid string", "a valid string"),
        ({"speed": 3}, "speed is not a setting; there are calibrate, cells", "one of calibrate, cells"),
        ({"driver_deadline": 3.0}, "driver_deadline is not a setting", "one of calibrate, cells"),
    ],
)
def test_a_bad_option_is_named_with_what_would_be_right_and_leaves_nothing_behind(option, said, expected, tmp_path):
    threads = []
    for _ in range(2):  # the first connection of a process starts the client's thread
        with pytest.raises(InvalidProgram) as caught:
            connect("inproc:", record=tmp_path / "log", **option)
        threads.append(threading.active_count())
    assert str(caught.value).startswith(said)
    assert said.startswith(caught.value.field)
    assert caught.value.found in (str(value) for value in (*option.values(), 8))
    assert expected in caught.value.expected
    assert not list(tmp_path.iterdir())
    assert threads[0] == threads[1]


def test_options_of_a_device_are_not_for_daemons(tmp_path):
    with pytest.raises(TypeError, match="seed"):
        connect(f"unix:{tmp_path}/s", seed=3)


def test_calls_after_close_say_that_the_connection_is_closed(spu):
    session = spu.open_session()
    session.program(Rows(A), B)
    spu.close()
    spu.close()
    for call in (
        lambda: spu.info,
        lambda: spu.halt(),
        lambda: spu.open_session(),
        lambda: session.read(),
        lambda: session.advance(1.0),
        lambda: session.program(Rows(A), B),
        lambda: session.solve(Rows(A), B, analog_time=1.0),
    ):
        with pytest.raises(DeviceUnavailable, match="closed"):
            call()
    session.close()


def test_a_device_of_this_process_leaves_no_thread_behind():
    before = set(threading.enumerate())
    with connect("inproc:"):
        own = {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("driver-")}
        assert own
    assert not own & set(threading.enumerate())


def test_a_driver_that_could_not_be_opened_leaves_no_thread_behind():
    before = set(threading.enumerate())
    with pytest.raises(DeviceFault):
        connect("inproc:", driver="abacus")
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("driver-"):
            thread.join(10.0)
            assert not thread.is_alive()


@pytest.mark.parametrize("where", ["__init__", "self_test"])
async def test_a_connection_that_is_given_up_while_the_device_is_opened_leaves_nothing(monkeypatch, where):
    begun, go_on, closed, errors = threading.Event(), threading.Event(), threading.Event(), []
    real, real_close = getattr(Emulator, where), Emulator.close

    def slow(*arguments):
        begun.set()
        assert go_on.wait(20.0)
        return real(*arguments)

    def close(emulator):
        real_close(emulator)
        closed.set()

    monkeypatch.setattr(Emulator, where, slow)
    monkeypatch.setattr(Emulator, "close", close)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    opening = asyncio.create_task(aio.connect("inproc:", **OPTIONS))
    await asyncio.to_thread(begun.wait, 20.0)
    opening.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    del opening
    gc.collect()
    assert not errors
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert await asyncio.to_thread(closed.wait, 20.0)
    await asyncio.to_thread(eventually, lambda: "driver-" not in str(threading.enumerate()), "its thread ends")
