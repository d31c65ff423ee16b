"""One session at a time, with a time to live and a fencing number."""

from dataclasses import replace

import pytest

from spu_link.errors import (
    DeviceBusy,
    DeviceHalted,
    InvalidProgram,
    SessionExpired,
    SessionRequired,
    StaleSession,
)
from spu_server.sessions import SessionKey, Sessions


class Wall:
    """A clock that a test moves."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def sessions(wall):
    return Sessions(epoch=7, clock=wall)


def test_a_second_session_is_refused_and_the_error_says_how_long_to_wait(sessions, wall):
    sessions.open("first", ttl=10.0)
    wall.seconds += 4.0
    with pytest.raises(DeviceBusy, match="'first'") as caught:
        sessions.open("second", ttl=10.0)
    assert caught.value.retry_after == pytest.approx(6.0)


def test_a_call_renews_the_session(sessions, wall):
    ref = sessions.open("me", ttl=10.0)
    for _ in range(5):
        wall.seconds += 9.0
        sessions.check(ref)
    assert sessions.holder == "me"


def test_silence_for_the_time_to_live_ends_the_session(sessions, wall):
    ref = sessions.open("me", ttl=10.0)
    wall.seconds += 10.0
    assert sessions.holder is None
    with pytest.raises(SessionExpired, match=r"10\.0 s"):
        sessions.check(ref)


def test_a_zombie_is_refused_once_another_session_has_taken_the_device(sessions, wall):
    zombie = sessions.open("zombie", ttl=1.0)
    wall.seconds += 1.5
    sessions.open("heir", ttl=1.0)
    with pytest.raises(StaleSession, match="'heir'"):
        sessions.check(zombie)
    sessions.close(zombie)
    assert sessions.holder == "heir"


def test_a_closed_session_frees_the_device_at_once(sessions):
    ref = sessions.open("me", ttl=10.0)
    sessions.close(ref)
    sessions.close(ref)
    assert sessions.holder is None
    with pytest.raises(SessionExpired, match="closed"):
        sessions.check(ref)
    sessions.open("you", ttl=10.0)


def test_a_guessed_id_is_refused(sessions):
    ref = sessions.open("me", ttl=10.0)
    for guess in (replace(ref, id="0" * 32), replace(ref, id="ä" * 32), SessionKey("", 0, 0)):
        with pytest.raises(SessionRequired):
            sessions.check(guess)


def test_a_session_of_another_run_of_the_daemon_has_expired(wall):
    ref = Sessions(epoch=6, clock=wall).open("me", ttl=10.0)
    fresh = Sessions(epoch=7, clock=wall)
    with pytest.raises(SessionExpired, match="restarted"):
        fresh.check(ref)
    fresh.open("you", ttl=10.0)
    with pytest.raises(SessionExpired, match="restarted"):
        fresh.check(ref)


def test_the_error_of_a_revoked_session_says_why(sessions):
    ref = sessions.open("me", ttl=10.0)
    sessions.revoke(DeviceHalted("smoke"))
    with pytest.raises(DeviceHalted, match="smoke"):
        sessions.check(ref)


@pytest.mark.parametrize("ttl", [0.0, -1.0, 0.01, 1e6, float("nan"), float("inf")])
def test_a_time_to_live_out_of_range_is_refused(sessions, ttl):
    with pytest.raises(InvalidProgram, match="ttl"):
        sessions.open("me", ttl=ttl)
