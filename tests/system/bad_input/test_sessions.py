"""A call without a session, or with one that is over, raises an error that says so."""

from __future__ import annotations

import pytest
import torch

from host_client import connect
from spu_link.errors import DeviceBusy, InvalidProgram, SessionExpired, SessionRequired, StaleSession
from spu_link.operators import Rows
from tests.system.bad_input.programs import program
from tests.system.raw import encoded, refused

NAN, INF = float("nan"), float("inf")


def calls(raw):
    """Every call that needs a session."""
    return {
        "program": lambda: raw.upload(*encoded(program())),
        "advance": lambda: raw.advance(1.0),
        "read": lambda: raw.read(),
        "renew": lambda: raw.renew(),
    }


CALLS = ("program", "advance", "read", "renew")


@pytest.mark.parametrize("call", CALLS)
def test_no_session(device, call):
    with device.raw(ttl=None) as raw, refused(SessionRequired, "session"):
        calls(raw)[call]()


@pytest.mark.parametrize("call", CALLS)
def test_a_guessed_session(device, call):
    with device.raw() as owner, device.raw(ttl=None) as raw:
        raw.session.CopyFrom(owner.session)
        raw.session.id = "0" * 32
        with refused(SessionRequired, "session"):
            calls(raw)[call]()
        raw.session.Clear()
        owner.renew()


@pytest.mark.parametrize("call", CALLS)
def test_an_expired_session(device, call):
    with device.raw(ttl=0.1) as raw:
        raw.wait_until_free()
        with refused(SessionExpired, "0.1 s"):
            calls(raw)[call]()


@pytest.mark.parametrize("call", CALLS)
def test_a_stale_fencing_number(device, call):
    with device.raw(ttl=0.1) as zombie:
        zombie.wait_until_free()
        with device.raw() as heir:
            with refused(StaleSession, "'raw'"):
                calls(zombie)[call]()
            heir.renew()


@pytest.mark.parametrize("call", CALLS)
def test_a_session_of_another_run_of_the_daemon(device, call):
    with device.raw() as owner, device.raw(ttl=None) as raw:
        raw.session.CopyFrom(owner.session)
        raw.session.epoch -= 1
        with refused(SessionExpired, "restarted"):
            calls(raw)[call]()
        raw.session.Clear()


def test_a_session_that_was_closed(device):
    with connect(device.address) as spu:
        session = spu.open_session()
        session.close()
        with pytest.raises(SessionExpired, match="closed"):
            session.program(Rows(torch.ones(2, 3)), torch.ones(3))
        with pytest.raises(SessionExpired, match="closed"):
            session.advance(1.0)
        with pytest.raises(SessionExpired, match="closed"):
            session.read()
        session.close()


def test_the_error_of_a_second_session_says_how_long_to_wait(device):
    with device.raw(ttl=30.0):
        with device.raw(ttl=None) as second, refused(DeviceBusy, "'raw'"):
            second.open()
        with connect(device.address) as spu:
            with pytest.raises(DeviceBusy, match="'raw'") as caught:
                spu.open_session()
            assert 20.0 < caught.value.retry_after <= 30.0
            assert spu.info.session_holder == "raw"


@pytest.mark.parametrize("ttl", [NAN, INF, -INF, 0.0, -1.0, 0.05, 3601.0])
def test_a_time_to_live_out_of_range(device, ttl):
    with device.raw(ttl=None) as raw, refused(InvalidProgram, "ttl"):
        raw.open(ttl)
    with connect(device.address) as spu, pytest.raises(InvalidProgram, match="ttl"):
        spu.open_session(ttl=ttl)


def test_a_holder_with_a_name_too_long(device):
    with connect(device.address) as spu, pytest.raises(InvalidProgram, match="holder"):
        spu.open_session(holder="x" * 201)
