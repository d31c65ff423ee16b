"""The blocking API: from many threads, from code with an event loop of its own, and against deadlines."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from host_client import aio, connect
from host_client.aio import Session
from host_client.links.lease import LONGEST_WAIT
from spu_link.errors import DeadlineExceeded, DeviceBusy, ReadInPast, SessionExpired
from spu_link.operators import Rows
from tests.pressure import time_enough
from tests.system.device import LONG, A, B, SteadyDevice, solution


@pytest.fixture
def session(stepped):
    with connect(stepped.address, timeout=20.0) as spu, spu.session() as session:
        yield session


def test_threads_share_one_session(session):
    session.program(Rows(A), B, damping=0.5, start="drive")
    session.advance(LONG)
    barrier = threading.Barrier(6)

    def work(number):
        barrier.wait(10.0)
        values = []
        for _ in range(5):
            values.append(session.read().value)
            session.advance(1.0)
            assert session.spu.info.sequence > 0
        return values

    with ThreadPoolExecutor(6) as pool:
        for values in pool.map(work, range(6)):
            for value in values:
                torch.testing.assert_close(value, solution(B, 0.5), rtol=1e-9, atol=1e-9)
    assert session.device_time == session.spu.info.time


def test_programs_from_several_threads_take_effect_one_after_the_other(session):
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(lambda k: session.program(Rows(A * k), B, damping=0.5), range(1, 9)))
    first = min(one.sequence for one in applied)
    assert sorted(one.sequence for one in applied) == list(range(first, first + 8))


def test_connections_of_several_threads_take_turns(stepped):
    def work(number):
        with connect(stepped.address, timeout=20.0) as spu:
            while True:
                try:
                    with spu.session() as session:
                        return session.solve(Rows(A), B * number, damping=0.5, analog_time=LONG).value
                except DeviceBusy:
                    time.sleep(0.005)

    with ThreadPoolExecutor(4) as pool:
        for number, value in enumerate(pool.map(work, range(4))):
            torch.testing.assert_close(value, solution(B * number, 0.5), rtol=1e-8, atol=1e-8)


def test_it_works_in_code_that_runs_an_event_loop_itself(stepped):
    async def notebook():
        with connect(stepped.address, timeout=20.0) as spu, spu.session() as session:
            return session.solve(Rows(A), B, damping=0.5, analog_time=LONG).value

    torch.testing.assert_close(asyncio.run(notebook()), solution(B, 0.5))


def test_a_loader_may_fork_workers_while_the_device_is_used(stepped):
    code = f"""
import torch
from torch import nn
from torch.utils.data import DataLoader
from host_client import TNGD, connect

model, criterion = nn.Linear(4, 3), nn.CrossEntropyLoss()
examples = [(torch.randn(4), number % 3) for number in range(24)]
loader = DataLoader(examples, 8, num_workers=1, multiprocessing_context="fork")
with connect({stepped.address!r}, timeout=20.0) as spu, spu.session() as session:
    optimizer = TNGD(model, criterion, session, lr=1.0, damping=0.1, analog_time=5.0)
    for epoch in range(2):
        for inputs, targets in loader:
            criterion(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
print(optimizer.steps)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "6\n"), ended.stderr


def test_a_reading_waits_in_one_thread_while_another_advances(session):
    session.program(Rows(A), B, damping=0.5, start="drive")
    now = session.advance(0.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(session.read, now + 5.0, 0.0, timeout=20.0)
        while not waiting.done():  # the reading may reach the device at any moment before its time
            if session.device_time < now + 4.5:
                session.advance(0.01)
            elif session.device_time < now + 5.0:
                session.spu.info  # noqa: B018 - lets the reading pass
                session.advance(0.5)
        assert waiting.result().time == now + 5.0


def test_a_deadline_is_kept_and_the_session_lives_on(session):
    session.program(Rows(A), B)
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        session.read(at=session.device_time + 1.0, timeout=0.2)
    assert time.monotonic() - begin < 15.0  # and not the connection's deadline
    session.advance(1.0)


def test_uploads_are_counted_in_bytes_of_tensors(session):
    session.program(Rows(A), B)
    session.program(Rows(A.float()), B.float(), start=torch.zeros(3))
    assert session.uploaded_bytes == (A.nbytes + B.nbytes) + (A.nbytes + B.nbytes) // 2 + 12


def test_leaving_the_block_releases_the_device_even_after_an_error(stepped):
    with connect(stepped.address) as spu:
        with pytest.raises(RuntimeError, match="mine"), spu.session():
            raise RuntimeError("mine")
        assert spu.info.session_holder is None
        with spu.session() as session:
            pass
        with pytest.raises(SessionExpired):
            session.read()


def test_the_holder_names_user_and_process_by_default(stepped):
    import os

    with connect(stepped.address) as spu:
        with spu.session():
            assert spu.info.session_holder.endswith(f":{os.getpid()}")
        with spu.session(holder="bench 3"):
            assert spu.info.session_holder == "bench 3"


def test_waits_for_device_time_are_added_to_the_deadline_within_reason(free):
    device = SteadyDevice(free)
    with connect(device.address, timeout=5.0) as spu, spu.session() as session:
        began = time.monotonic()
        now = session.read().time
        inner: Session = session.aio
        left = inner.lease.seconds_until(now + 10_000.0)  # a heartbeat may have returned a later time by now
        assert 9.9 - (time.monotonic() - began) <= left <= 10.0
        assert inner.lease.seconds_until(1e300) == LONGEST_WAIT
        assert inner.lease.seconds_until(None) == inner.lease.seconds_until(float("nan")) == 0.0
        for seconds, attempt in time_enough(0.5, ReadInPast):
            with attempt:
                at = session.read().time + 1000.0 * seconds
                assert session.read(at=at, timeout=None).time == at


def test_a_free_device_is_read_at_the_asked_time_and_reports_how_stale_it_is(free):
    device = SteadyDevice(free)
    with device.session() as session:
        for seconds, attempt in time_enough(0.02, ReadInPast):
            with attempt:
                asked = [session.read().time + 1000.0 * seconds * k for k in range(1, 4)]
                with ThreadPoolExecutor(3) as pool:
                    readings = list(pool.map(lambda at: session.read(at), asked))
                assert [reading.time for reading in readings] == asked
                assert all(reading.sent >= reading.time for reading in readings)


async def test_an_upload_that_fails_after_it_was_dropped_says_nothing(stepped, caplog):
    async with await aio.connect(stepped.address, timeout=20.0) as spu, spu.session() as session:
        upload = session.upload(Rows(torch.randn(400, 5_000)))  # several chunks
        await spu.close()
        await upload.begun(20.0)
        del upload
        gc.collect()
        await asyncio.sleep(0)
    assert "never retrieved" not in caplog.text
