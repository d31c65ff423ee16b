"""What can go wrong between a host and a device: one hierarchy, the same on both sides of the wire.

Every error names a `field`, what was `found` and what was `expected` where that makes sense, and carries the canonical
gRPC status code it travels under. `Retryable` errors may vanish by themselves; `Persistent` ones need a change.
"""

from __future__ import annotations

from typing import ClassVar


class SpuError(Exception):
    """Anything that went wrong between host and device.

    Attributes:
        code: canonical status code, by name.
        field: what the error is about, for instance ``"damping"``; empty where nothing can be named.
        found: the offending value, as text.
        expected: what would have been right, as text.
    """

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


class Persistent(SpuError):
    """The same call fails again until something is changed."""


class DeviceUnavailable(Retryable):
    """No daemon answers at the address, or it went away in the middle of a call."""

    code = "UNAVAILABLE"


class DeadlineExceeded(Retryable):
    """The call did not end within its deadline."""

    code = "DEADLINE_EXCEEDED"


class DeviceBusy(Retryable):
    """Another session holds the device.

    Attributes:
        retry_after: seconds until that session expires if nothing renews it.
    """

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

    code = "DATA_LOSS"


class DeviceHalted(Retryable):
    """The device was halted; a new session clears it."""

    code = "ABORTED"


class OperatorGone(Retryable):
    """The operator that a program would keep is not the device's any more; a program that brings it along succeeds."""

    code = "FAILED_PRECONDITION"


class DeviceFault(Persistent):
    """The driver failed. The daemon lives, the device does not."""

    code = "INTERNAL"


class InvalidProgram(Persistent, ValueError):
    """An argument or a tensor is not what it must be."""

    code = "INVALID_ARGUMENT"


class UnknownRole(InvalidProgram):
    """A tensor names a role this device does not know, or one that is out of place."""


class UnsupportedBlock(InvalidProgram):
    """The operator has a block kind that this device does not know."""

    code = "UNIMPLEMENTED"


class CapacityExceeded(Persistent):
    """The program needs more cells or more bytes than the device has."""

    code = "OUT_OF_RANGE"


class SessionRequired(Persistent):
    """The call needs a session, and names none that this daemon ever opened."""

    code = "FAILED_PRECONDITION"


class SessionExpired(Persistent):
    """The session ended: its time to live passed, or it was closed."""

    code = "FAILED_PRECONDITION"


class SessionClosed(SessionExpired):
    """The session, or the connection it belongs to, was closed in this process; open a new one."""


class StaleSession(Persistent):
    """A newer session has taken the device; this call came too late."""

    code = "ABORTED"


class WrongProcess(Persistent):
    """A connection, or what uses one, belongs to the process that made it, and was used in a forked child of it."""

    code = "FAILED_PRECONDITION"


class ClockMismatch(Persistent):
    """The call makes no sense on this device's kind of clock."""

    code = "FAILED_PRECONDITION"


class EpochMismatch(Persistent):
    """A device time belongs to another run of the daemon than what it is used with."""

    code = "FAILED_PRECONDITION"


class ReadInPast(Persistent):
    """The device time asked for has passed, and the state at that time is gone."""

    code = "OUT_OF_RANGE"


class Clipped(Persistent):
    """The state left the range of the device's converters, so that what they say is not its value."""

    code = "OUT_OF_RANGE"


class NotInLog(Persistent):
    """The device plays a recorded run back, and this call is not the one that the run goes on with."""

    code = "FAILED_PRECONDITION"


class Unsupported(Persistent):
    """The device lacks an optional ability."""

    code = "UNIMPLEMENTED"


class NoProgram(Persistent):
    """There is nothing to read: no program has taken hold."""

    code = "FAILED_PRECONDITION"


class ProtocolError(Persistent):
    """The messages of a call came in an order the protocol does not allow."""

    code = "INVALID_ARGUMENT"


class LogUnusable(Exception):
    """A device's event log cannot be read, or cannot be written: of a folder, not of a device."""


def _descendants(cls: type[SpuError]) -> list[type[SpuError]]:
    return [cls, *(d for child in cls.__subclasses__() for d in _descendants(child))]


BY_REASON: dict[str, type[SpuError]] = {cls.reason(): cls for cls in _descendants(SpuError)}
"""Every error class by its name on the wire."""
