"""Advances and readings at times that cannot be, have been, or never come."""

from __future__ import annotations

import grpc
import pytest

from spu_link.errors import ClockMismatch, DeadlineExceeded, InvalidProgram, ReadInPast
from tests.system.raw import refused
from tngd.spu.v1 import spu_pb2 as pb

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("duration", [-1.0, NAN, INF, -INF])
def test_an_advance_by_no_duration(device, duration):
    with device.raw() as raw:
        before = raw.info().time
        with refused(InvalidProgram, "duration"):
            raw.advance(duration)
        assert raw.info().time == before
    with device.session() as session, pytest.raises(InvalidProgram, match="duration"):
        session.advance(duration)


def test_an_advance_of_a_free_running_clock(free_device):
    with free_device.raw() as raw, refused(ClockMismatch, "runs by itself"):
        raw.advance(1.0)
    with free_device.session() as session, pytest.raises(ClockMismatch, match=r"read\(at=…\)"):
        session.advance(1.0)


@pytest.mark.parametrize("at", [NAN, INF, -INF])
def test_a_reading_at_no_time(device, free_device, at):
    for one in (device, free_device):
        with one.raw() as raw, refused(InvalidProgram, "at"):
            raw.read(at=at)
        with one.session() as session, pytest.raises(InvalidProgram, match="at"):
            session.read(at=at)


@pytest.mark.parametrize("window", [NAN, INF, -INF, -1.0])
def test_a_reading_over_no_window(device, window):
    with device.raw() as raw, refused(InvalidProgram, "window"):
        raw.read(window=window)
    with device.session() as session, pytest.raises(InvalidProgram, match="window"):
        session.read(window=window)


def test_a_reading_in_the_past(device, free_device):
    for one in (device, free_device):
        with one.raw() as raw, refused(ReadInPast, "past"):
            raw.read(at=raw.info().time - 10.0)
        with one.session() as session, pytest.raises(ReadInPast, match="past"):
            session.read(at=session.read().time - 1.0)


def test_a_reading_in_the_past_says_how_to_get_one(device, free_device):
    with free_device.session() as session, pytest.raises(ReadInPast, match=r"session\.solve\(.*--rate"):
        session.read(at=session.read().time - 1.0)
    with device.session() as session:
        session.advance(2.0)
        with pytest.raises(ReadInPast, match="before the clock is advanced"):
            session.read(at=session.read().time - 1.0)
        with pytest.raises(ReadInPast, match=r"at least 3\.0 τ after the last event"):
            session.read(window=3.0)


def test_a_window_that_reaches_back_behind_the_last_event(device):
    with device.session() as session:
        session.read()
        session.advance(2.0)
        with pytest.raises(ReadInPast, match="window"):
            session.read(window=2.5)
        reading = session.read(window=2.0)  # all that is left of the path
        assert reading.window == 2.0
    with device.raw() as raw, refused(ReadInPast, "window"):
        raw.read(window=1.0)


def test_a_reading_far_away_on_a_free_clock_ends_with_its_deadline(free_device):
    with free_device.session() as session:
        for at in (1e9, 1e300):
            with pytest.raises(DeadlineExceeded):
                session.read(at=at, timeout=0.3)


def test_a_reading_that_no_advance_brings_about_ends_with_its_deadline(device):
    with device.session() as session:
        now = session.advance(0.0)
        with pytest.raises(DeadlineExceeded):
            session.read(at=now + 10.0, timeout=0.3)
        with pytest.raises(DeadlineExceeded):
            session.read(at=now + 10.0, window=5.0, timeout=0.3)
        session.advance(20.0)  # nothing waits on the way any more
    with device.raw() as raw, pytest.raises(grpc.RpcError) as caught:
        list(raw.stub.Read(pb.ReadRequest(session=raw.session, at=raw.info().time + 1.0), timeout=0.3))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
