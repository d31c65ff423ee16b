"""Errors between a host and a device: one hierarchy, the same on both sides of the wire.

Every error names a `field`, what was `found` and what was `expected` where that makes sense, and carries the canonical
gRPC status code it travels under. `Retryable` errors may vanish by themselves; `Persistent` ones need a change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class SpuError(Exception):
    """A call between host and device failed.

    Attributes:
        code: canonical status code, by name.
        field: what the error is about, for instance ``"damping"``; empty where nothing can be named.
        found: the offending value, as text.
        expected: what would have been right, as text.
    """

    remedy: ClassVar[str] = (
        "read the message: a daemon answered in a way that no other class describes; check that its version "
        "is the client's"
    )

    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, field: str = "", found: object = "", expected: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.found = str(found)
        self.expected = expected

    @classmethod
    def reason(cls) -> str:
        """Name on the wire: the class name in upper snake case, ``DeviceBusy`` → ``DEVICE_BUSY``."""
        return "".join(f"_{c}" if c.isupper() else c.upper() for c in cls.__name__).lstrip("_")

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the named fields when the error crosses a process boundary."""
        return type(self), (self.message,), self.__dict__


class Retryable(SpuError):
    """The same call may succeed later."""

    remedy: ClassVar[str] = "make the same call again"


class Persistent(SpuError):
    """The same call fails again until something is changed."""

    remedy: ClassVar[str] = "change what the message names before calling again"


class DeviceUnavailable(Retryable):
    """No daemon answers at the address, or it went away in the middle of a call."""

    remedy: ClassVar[str] = (
        "start a daemon at that address (`spu-server serve --listen ADDRESS`) or correct the address; with "
        "on_loss the optimizer waits for it or goes on without it"
    )

    code = "UNAVAILABLE"


class DeadlineExceeded(Retryable):
    """The call did not end within its deadline."""

    remedy: ClassVar[str] = (
        "call again, with a larger timeout if the device has much to compute; the daemon's log shows whether it is busy"
    )

    code = "DEADLINE_EXCEEDED"


class DeviceBusy(Retryable):
    """Another session holds the device.

    Attributes:
        retry_after: seconds until that session expires if nothing renews it.
    """

    remedy: ClassVar[str] = (
        "wait until the other session is closed or expires, in at most `retry_after` seconds unless it is renewed"
    )

    code = "RESOURCE_EXHAUSTED"

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        found: object = "",
        expected: str = "",
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message, field=field, found=found, expected=expected)
        self.retry_after = retry_after


class UploadCorrupt(Retryable):
    """The bytes that arrived are not the bytes that were sent (checksum, offset or length)."""

    remedy: ClassVar[str] = "send it again: the program in force is unchanged"

    code = "DATA_LOSS"


class DeviceHalted(Retryable):
    """The device was halted; a new session clears it."""

    remedy: ClassVar[str] = "find out who halted the device and why, then open a new session"

    code = "ABORTED"


class OperatorGone(Retryable):
    """The operator that a program would keep is not the device's any more; a program that brings it along succeeds."""

    remedy: ClassVar[str] = "send the operator with the program instead of keeping the old one"

    code = "FAILED_PRECONDITION"


class DeviceFault(Persistent):
    """The driver failed. The daemon lives, the device does not."""

    remedy: ClassVar[str] = (
        "read the daemon's log and restart the daemon; a driver that is restarted by itself needs a new session"
    )

    code = "INTERNAL"


class InvalidProgram(Persistent, ValueError):
    """An argument or a tensor is out of its range, of the wrong shape or type, or not finite."""

    remedy: ClassVar[str] = "correct the argument or the tensor that the message names"

    code = "INVALID_ARGUMENT"


class UnknownRole(InvalidProgram):
    """A tensor names a role this device does not know, or one that is out of place."""

    remedy: ClassVar[str] = "use client and daemon of the same version"


class UnsupportedBlock(InvalidProgram):
    """The operator has a block kind that this device does not know."""

    remedy: ClassVar[str] = "use a kind of block that `spu.features` lists, or a driver that knows this one"

    code = "UNIMPLEMENTED"


class CapacityExceeded(Persistent):
    """The program needs more cells or more bytes than the device has."""

    remedy: ClassVar[str] = (
        'use a smaller batch, curvature="mc", an embedding, or a daemon with larger --cells or --max-bytes'
    )

    code = "OUT_OF_RANGE"


class SessionRequired(Persistent):
    """The call needs a session, and names none that this daemon ever opened."""

    remedy: ClassVar[str] = "open a session with `spu.session()` and make the call through it"

    code = "FAILED_PRECONDITION"


class SessionExpired(Persistent):
    """The session ended: its time to live passed, or it was closed."""

    remedy: ClassVar[str] = "open a new session; a larger ttl outlasts longer pauses of the process"

    code = "FAILED_PRECONDITION"


class SessionClosed(SessionExpired):
    """The session, or the connection it belongs to, was closed in this process."""

    remedy: ClassVar[str] = "open a new session, or a new connection, and make what uses it anew"


class StaleSession(Persistent):
    """A newer session has taken the device; this call came too late."""

    remedy: ClassVar[str] = "open a new session, and see that only one client uses the device"

    code = "ABORTED"


class WrongProcess(Persistent):
    """A connection, or what uses one, belongs to the process that made it, and was used in a forked child of it."""

    remedy: ClassVar[str] = "call `connect` in the child, and open a session there"

    code = "FAILED_PRECONDITION"


class ClockMismatch(Persistent):
    """The call makes no sense on this device's kind of clock."""

    remedy: ClassVar[str] = (
        "use `advance` with `--clock stepped` only, and waiting for device times with `--clock free` only"
    )

    code = "FAILED_PRECONDITION"


class EpochMismatch(Persistent):
    """A device time belongs to another run of the daemon than what it is used with."""

    remedy: ClassVar[str] = "take device times from the present session: the daemon has been restarted"

    code = "FAILED_PRECONDITION"


class ReadInPast(Persistent):
    """The device time asked for has passed, and the state at that time is gone."""

    remedy: ClassVar[str] = (
        "take the reading together with its program (`session.solve`, or `reads` of an upload), ask for a "
        "later time, or slow the device down with `spu-server serve --rate`"
    )

    code = "OUT_OF_RANGE"


class Clipped(Persistent):
    """The state left the range of the device's converters, so that their codes are not its value."""

    remedy: ClassVar[str] = (
        "scale the system down or raise the damping, so that the solution stays within the converters' range"
    )

    code = "OUT_OF_RANGE"


class NotInLog(Persistent):
    """The device plays a recorded run back, and this call is not the one that the run goes on with."""

    remedy: ClassVar[str] = "make the same calls as the recorded run, or use another driver"

    code = "FAILED_PRECONDITION"


class Unsupported(Persistent):
    """The device lacks an optional ability."""

    remedy: ClassVar[str] = "do without that ability, or use a driver that has it; `spu.features` lists them"

    code = "UNIMPLEMENTED"


class NoProgram(Persistent):
    """There is nothing to read: no program has taken effect."""

    remedy: ClassVar[str] = "program the device before reading it"

    code = "FAILED_PRECONDITION"


class ProtocolError(Persistent):
    """The messages of a call came in an order the protocol does not allow."""

    remedy: ClassVar[str] = "use client and daemon of the same version, and an upload once only"

    code = "INVALID_ARGUMENT"


class LogUnusable(Exception):
    """A device's event log cannot be read, or cannot be written: of a folder, not of a device."""

    remedy: ClassVar[str] = "name the folder of one complete log, or for a new log one that can be written"


def _descendants(cls: type[SpuError]) -> list[type[SpuError]]:
    return [cls, *(d for child in cls.__subclasses__() for d in _descendants(child))]


BY_REASON: dict[str, type[SpuError]] = {cls.reason(): cls for cls in _descendants(SpuError)}
"""Every error class by its name on the wire."""


def mismatch(field: str, found: object, expected: str) -> InvalidProgram:
    """The error for a shape that does not fit the others."""
    return InvalidProgram(f"{field} is {found}; expected {expected}", field=field, found=found, expected=expected)


def either(choices: Iterable[object]) -> str:
    """Choices as people say them."""
    return " or ".join(str(choice) for choice in choices)
