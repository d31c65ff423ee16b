"""A check of a device's clock against this machine's."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

KEPT = 16
"""Latest comparisons that a new one is held against, besides the first."""


@dataclass(frozen=True)
class _Sample:
    before: float
    device: float
    after: float


@dataclass
class ClockWatch:
    """Compares a device's clock with this machine's monotonic one.

    A comparison is (before, device, after): the device showed `device` seconds at some moment between `before` and
    `after` here. From two of them the device's rate lies between bounds that hold whatever the delays were, so a clock
    within its tolerance never raises an alarm; one that is off by more than the tolerance by δ is found after at most
    (delay of both comparisons) / δ seconds.

    Attributes:
        tolerance: largest relative difference of the rates.
    """

    tolerance: float
    _first: _Sample | None = None
    _latest: deque[_Sample] = field(default_factory=lambda: deque(maxlen=KEPT))

    def compare(self, before: float, device: float, after: float) -> str:
        """Take a comparison in.

        Returns:
            What is wrong with the clock, in words; empty if nothing can be said against it.
        """
        sample = _Sample(before, device, after)
        earlier = [*([self._first] if self._first else []), *self._latest]
        self._first = self._first or sample
        self._latest.append(sample)
        for other in earlier:
            gone = device - other.device
            shortest, longest = max(0.0, before - other.after), after - other.before
            if (
                not shortest * (1 - self.tolerance) <= gone <= longest * (1 + self.tolerance)
            ):  # also a clock that says NaN
                return (
                    f"the device's clock went on by {gone:.6g} s while between {shortest:.6g} and {longest:.6g} s "
                    f"passed here; at most {self.tolerance:.1g} of that may be missing or too much"
                )
        return ""
