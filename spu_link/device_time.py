"""Device times that know which run of the daemon they belong to."""

from __future__ import annotations

from typing import SupportsFloat, overload

from spu_link.errors import EpochMismatch


class DeviceTime(float):
    """A device time in τ: a float that also knows its epoch, the identity of the daemon's run.

    Device time begins at 0 with every run, so times of two runs look alike and mean nothing to each other. Hence:

    - a time plus or minus a duration (a plain number) is a time of the same epoch;
    - the difference of two times is a plain duration;
    - adding, subtracting or ordering times of two epochs raises `EpochMismatch`; they are never equal;
    - a session refuses a time of another epoch.

    A plain float is taken at its word. In everything else (formatting, JSON, arrays) it is the float that it is.

    Args:
        value: device time in τ.
        epoch: identity of the daemon's run.
    """

    epoch: int

    __slots__ = ("epoch",)

    def __new__(cls, value: SupportsFloat, epoch: int) -> DeviceTime:
        """The time `value` of an epoch."""
        time = super().__new__(cls, value)
        time.epoch = epoch
        return time

    def check(self, epoch: int, field: str = "time") -> None:
        """See that this is a time of an epoch.

        Raises:
            EpochMismatch: naming `field`, when it is not.
        """
        if self.epoch != epoch:
            raise EpochMismatch(
                f"{field} is {float(self)} τ of epoch {self.epoch}, not of epoch {epoch}: "
                "the daemon has been started again in between; take the time from the present session",
                field=field,
                found=self.epoch,
                expected=str(epoch),
            )

    @overload
    def __add__(self, other: DeviceTime, /) -> float: ...
    @overload
    def __add__(self, other: float, /) -> DeviceTime | float: ...
    def __add__(self, other: float, /) -> DeviceTime | float:
        """The time so much later; the sum of two times, as for a mean, is a plain number."""
        if not isinstance(other, (int, float)):
            return NotImplemented
        if isinstance(other, DeviceTime):
            other.check(self.epoch)
            return float(self) + float(other)
        return DeviceTime(float(self) + other, self.epoch)

    __radd__ = __add__

    @overload
    def __sub__(self, other: DeviceTime, /) -> float: ...
    @overload
    def __sub__(self, other: float, /) -> DeviceTime | float: ...
    def __sub__(self, other: float, /) -> DeviceTime | float:
        """The duration since another time of this epoch; or the time so much earlier."""
        if not isinstance(other, (int, float)):
            return NotImplemented
        if isinstance(other, DeviceTime):
            other.check(self.epoch)
            return float(self) - float(other)
        return DeviceTime(float(self) - other, self.epoch)

    def __lt__(self, other: float, /) -> bool:
        """Return whether it is earlier."""
        self._comparable(other)
        return float(self) < other

    def __le__(self, other: float, /) -> bool:
        """Return whether it is not later."""
        self._comparable(other)
        return float(self) <= other

    def __gt__(self, other: float, /) -> bool:
        """Return whether it is later."""
        self._comparable(other)
        return float(self) > other

    def __ge__(self, other: float, /) -> bool:
        """Return whether it is not earlier."""
        self._comparable(other)
        return float(self) >= other

    def __eq__(self, other: object, /) -> bool:
        """Return whether it is the same time of the same epoch, or the same plain number."""
        if isinstance(other, DeviceTime) and other.epoch != self.epoch:
            return False
        return float(self) == other

    def __ne__(self, other: object, /) -> bool:
        """Return whether it is not equal."""
        return not self == other

    __hash__ = float.__hash__

    def __reduce__(self) -> tuple[type[DeviceTime], tuple[float, int]]:
        """Keep the epoch in copies and pickles."""
        return DeviceTime, (float(self), self.epoch)

    def _comparable(self, other: float) -> None:
        if isinstance(other, DeviceTime):
            other.check(self.epoch)
