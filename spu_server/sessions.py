"""Who may use the device: one session at a time, with a time to live and a fencing number."""

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
)
from spu_link.operators.base import mismatch
from tngd.spu.v1 import spu_pb2 as pb

MIN_TTL, MAX_TTL = 0.1, 3600.0
"""Limits of a session's time to live, in seconds."""

MAX_HOLDER = 200
"""Maximum number of characters of a holder's name."""


@dataclass
class _Lease:
    ref: pb.SessionRef
    holder: str
    ttl: float
    expires: float
    ended: SpuError | None = None


class Sessions:
    """The one lease of a device.

    Args:
        epoch: identity of this run of the daemon.
        clock: seconds, monotonic; tests pass their own.
    """

    def __init__(self, epoch: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._epoch = epoch
        self._clock = clock
        self._lease: _Lease | None = None
        self._fencing = 0

    @property
    def holder(self) -> str | None:
        """Name of the living session's holder; None without one."""
        lease = self._living()
        return lease.holder if lease else None

    def open(self, holder: str, ttl: float) -> pb.SessionRef:
        """Take the device.

        Raises:
            DeviceBusy: while another session lives.
            InvalidProgram: for a name or a time to live out of range.
        """
        if not MIN_TTL <= ttl <= MAX_TTL:
            raise mismatch("ttl", f"{ttl} s", f"{MIN_TTL} to {MAX_TTL} seconds")
        if len(holder) > MAX_HOLDER:
            raise mismatch("holder", f"{len(holder)} characters long", f"at most {MAX_HOLDER} characters")
        if lease := self._living():
            left = lease.expires - self._clock()
            raise DeviceBusy(
                f"the device is held by {lease.holder!r}, whose session lives for another {left:.1f} s unless renewed",
                field="session",
                found=lease.holder,
                expected="no living session",
                retry_after=left,
            )
        self._fencing += 1
        ref = pb.SessionRef(id=secrets.token_hex(16), epoch=self._epoch, fencing=self._fencing)
        self._lease = _Lease(ref, holder, ttl, self._clock() + ttl)
        return ref

    def check(self, ref: pb.SessionRef) -> float:
        """Admit a call of a session, and renew it; its time to live in seconds.

        Raises:
            SessionRequired: when the reference names no session this daemon opened.
            StaleSession: when a newer session has taken the device.
            SessionExpired: when the session ended; `DeviceHalted` when a halt ended it.
        """
        lease = self._lease
        if not ref.id or lease is None or ref.fencing > lease.ref.fencing:
            if ref.id and ref.epoch != self._epoch:
                raise _expired("the daemon has been restarted since the session was opened", ref)
            raise SessionRequired(
                "the call needs a session; open one with spu.session()",
                field="session",
                found=ref.id or "none",
                expected="the session that holds the device",
            )
        if ref.epoch != self._epoch:
            raise _expired("the daemon has been restarted since the session was opened", ref)
        if ref.fencing < lease.ref.fencing:
            raise StaleSession(
                f"session {ref.fencing} has been followed by session {lease.ref.fencing} of {lease.holder!r}; "
                "open a new one when that has ended",
                field="session.fencing",
                found=ref.fencing,
                expected=str(lease.ref.fencing),
            )
        if not secrets.compare_digest(ref.id, lease.ref.id):
            raise SessionRequired(
                "the session's id is not the one that was given out", field="session.id", expected="the id given out"
            )
        if lease.ended:
            raise lease.ended
        if self._clock() >= lease.expires:
            raise _expired(f"no call or heartbeat came for {lease.ttl} s, its time to live", ref)
        lease.expires = self._clock() + lease.ttl
        return lease.ttl

    def lives(self, ref: pb.SessionRef) -> bool:
        """Return whether a session that was admitted still lives; this does not renew it."""
        lease = self._living()
        return lease is not None and lease.ref == ref

    def close(self, ref: pb.SessionRef) -> bool:
        """Give the device back; whether this session had it. Closing a session that has ended is no error."""
        if self._lease is None or self._lease.ref != ref or self._lease.ended is not None:
            return False
        self._lease.ended = _expired("it was closed", ref)
        return True

    def revoke(self, reason: SpuError) -> None:
        """End the living session, if any; its calls get `reason`."""
        if lease := self._living():
            lease.ended = reason

    def _living(self) -> _Lease | None:
        lease = self._lease
        return lease if lease and lease.ended is None and self._clock() < lease.expires else None


def _expired(why: str, ref: pb.SessionRef) -> SessionExpired:
    return SessionExpired(
        f"the session has ended: {why}; open a new one", field="session", found=ref.fencing, expected="a living session"
    )
