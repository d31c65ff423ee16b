"""Every error that the wire can carry is raised in one of these tests."""

from __future__ import annotations

import itertools

from spu_link.errors import (
    ClockMismatch,
    DeadlineExceeded,
    DeviceBusy,
    DeviceFault,
    DeviceUnavailable,
    NoProgram,
    ReadInPast,
    SessionExpired,
    SessionRequired,
    SpuError,
    StaleSession,
)
from tests.system.bad_input.headers import HEADERS
from tests.system.bad_input.uploads import UPLOADS


def test_every_error_of_the_wire_has_an_error_of_python():
    covered = {HEADERS[name][1] for name in HEADERS} | {UPLOADS[name][1] for name in UPLOADS}
    covered |= {DeadlineExceeded, DeviceBusy, DeviceFault, DeviceUnavailable, NoProgram, ReadInPast, ClockMismatch}
    covered |= {SessionExpired, SessionRequired, StaleSession}
    every = set(itertools.chain(*(_leaves(cls) for cls in SpuError.__subclasses__())))
    elsewhere = {
        "Clipped",
        "DeviceHalted",
        "EpochMismatch",
        "NotInLog",
        "OperatorGone",
        "SessionClosed",
        "Unsupported",
        "WrongProcess",
    }  # have their tests in other files
    assert {cls.__name__ for cls in every - covered} <= elsewhere


def _leaves(cls):
    below = cls.__subclasses__()
    own = {cls} if cls.__module__ == "spu_link.errors" and cls.__name__ not in ("Retryable", "Persistent") else set()
    return own.union(*(_leaves(child) for child in below))
