"""Sessions: one at a time may use the device, with a time to live and a fencing number."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from spu_link.errors import (
    DeviceBusy,
    SessionExpired,
    SessionRequired,
    SpuError,
    StaleSession,
    mismatch,
)

MIN_TTL, MAX_TTL = 0.1, 3600.0
"""Limits of a session's time to live, in seconds."""

MAX_HOLDER = 200
"""Maximum number of characters of a holder's name."""


@dataclass(frozen=True)
class SessionKey:
    """Name of a session; whoever knows it may use the device.

    Attributes:
        id: unguessable; empty for none.
        epoch: run of the daemon that gave it out.
        fencing: number that grows by one with each session.
    """

    id: str
    epoch: int
    fencing: int


@dataclass
class _Session:
    key: SessionKey
    holder: str
    ttl: float
    expires: float
    ended: SpuError | None = None


class Sessions:
    """The one session of a device.

    Args:
        epoch: identity of this run of the daemon.
        clock: seconds, monotonic; tests pass their own.
    """

    def __init__(self, epoch: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._epoch = epoch
        self._clock = clock
        self._session: _Session | None = None
        self._fencing = 0

    @property
    def holder(self) -> str | None:
        """Name of the living session's holder; None without one."""
        session = self._living()
        return session.holder if session else None

    def open(self, holder: str, ttl: float) -> SessionKey:
        """Take the device.

        Raises:
            DeviceBusy: while another session lives.
            InvalidProgram: for a name or a time to live out of range.
        """
        if not MIN_TTL <= ttl <= MAX_TTL:
            raise mismatch("ttl", f"{ttl} s", f"{MIN_TTL} to {MAX_TTL} seconds")
        if len(holder) > MAX_HOLDER:
            raise mismatch("holder", f"{len(holder)} characters long", f"at most {MAX_HOLDER} characters")
        if session := self._living():
            left = session.expires - self._clock()
            raise DeviceBusy(
                f"the device is held by {session.holder!r}, "
                f"whose session lives for another {left:.1f} s unless renewed",
                field="session",
                found=session.holder,
                expected="no living session",
                retry_after=left,
            )
        self._fencing += 1
        key = SessionKey(secrets.token_hex(16), self._epoch, self._fencing)
        self._session = _Session(key, holder, ttl, self._clock() + ttl)
        return key

    def check(self, key: SessionKey) -> float:
        """Admit a call of a session, and renew it; its time to live in seconds.

        Raises:
            SessionRequired: when the reference names no session this daemon opened.
            StaleSession: when a newer session has taken the device.
            SessionExpired: when the session ended; `DeviceHalted` when a halt ended it.
        """
        session = self._session
        if not key.id or session is None or key.fencing > session.key.fencing:
            if key.id and key.epoch != self._epoch:
                raise _expired_error("the daemon has been restarted since the session was opened", key)
            raise SessionRequired(
                "the call needs a session; open one with spu.session()",
                field="session",
                found=key.id or "none",
                expected="the session that holds the device",
            )
        if key.epoch != self._epoch:
            raise _expired_error("the daemon has been restarted since the session was opened", key)
        if key.fencing < session.key.fencing:
            raise StaleSession(
                f"session {key.fencing} has been followed by session {session.key.fencing} of {session.holder!r}; "
                "open a new one when that has ended",
                field="session.fencing",
                found=key.fencing,
                expected=str(session.key.fencing),
            )
        if not secrets.compare_digest(key.id.encode(), session.key.id.encode()):
            raise SessionRequired(
                "the session's id is not the one that was given out", field="session.id", expected="the id given out"
            )
        if session.ended:
            raise session.ended
        if self._clock() >= session.expires:
            raise _expired_error(f"no call or heartbeat came for {session.ttl} s, its time to live", key)
        session.expires = self._clock() + session.ttl
        return session.ttl

    def lives(self, key: SessionKey) -> bool:
        """Return whether a session that was admitted still lives; this does not renew it."""
        session = self._living()
        return session is not None and session.key == key

    def close(self, key: SessionKey) -> bool:
        """Give the device back; whether this session had it. Closing a session that has ended is no error."""
        if self._session is None or self._session.key != key or self._session.ended is not None:
            return False
        self._session.ended = _expired_error("it was closed", key)
        return True

    def revoke(self, reason: SpuError) -> None:
        """End the living session, if any; its calls get `reason`."""
        if session := self._living():
            session.ended = reason

    def _living(self) -> _Session | None:
        session = self._session
        return session if session and session.ended is None and self._clock() < session.expires else None


def _expired_error(why: str, key: SessionKey) -> SessionExpired:
    return SessionExpired(
        f"the session has ended: {why}; open a new one",
        field="session",
        found=key.fencing,
        expected="a living session",
    )
