"""Device time as the host knows it: agreement of two clocks by four timestamps, with a bound on its error.

In an exchange the host notes when it asks (its own monotonic clock), the device when the question arrives and when the
answer leaves (device time), and the host when that arrives. The middles of both pairs are taken for the same instant,
which errs by at most half of the time that was spent on the way, however that is split between the two directions.
(D. L. Mills, "Internet time synchronization: the Network Time Protocol", IEEE Trans. Commun. 39, 1991.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from spu_link.device_time import DeviceTime
from spu_link.errors import ClockMismatch

DRIFT = 500e-6
"""Max difference of the device's rate from its nominal one as the host's clock sees it: Linux slews none by more."""

HISTORY = 16
"""Exchanges that are kept, the newest ones."""


@dataclass(frozen=True)
class Exchange:
    """One question after the device's time, and its answer.

    Attributes:
        sent: when the question left, in seconds of the host's monotonic clock.
        received: when the answer came, likewise.
        device_received: device time at which the question came, in τ.
        device_sent: device time at which the answer left, in τ.
        epoch: identity of the daemon's run.
        rate: τ per second; 0 on a stepped clock.
    """

    sent: float
    received: float
    device_received: float
    device_sent: float
    epoch: int
    rate: float

    @property
    def host(self) -> float:
        """The middle of the exchange, in seconds of the host's clock."""
        return self.sent + 0.5 * (self.received - self.sent)

    @property
    def device(self) -> float:
        """The middle of the exchange in device time, in τ."""
        return self.device_received + 0.5 * (self.device_sent - self.device_received)


class ClockAgreement:
    """Translates between the host's monotonic clock and the device time of one epoch; safe from any thread.

    Of a short history that exchange is used which bounds the error best at the time in question: half the time that it
    spent on the way, plus `drift` times its age. Exchanges that contradict the newest one (the host, or the device's,
    was suspended) are forgotten.

    A stepped clock has no rate: what is known then is the newest device time that the device has sent.

    Args:
        first: an exchange.
        drift: max relative error of the rate, below 1.
        now: the host's clock, in seconds; tests pass their own.

    Attributes:
        epoch: identity of the daemon's run that it holds for.
        rate: nominal τ per second; 0 on a stepped clock.
    """

    def __init__(self, first: Exchange, *, drift: float = DRIFT, now: Callable[[], float] = time.monotonic) -> None:
        self.epoch = first.epoch
        self.rate = first.rate
        self._growth = drift / (1.0 - drift)
        self._now = now
        self._exchanges: tuple[Exchange, ...] = (first,)
        self._newest = DeviceTime(first.device_sent, first.epoch)

    def add(self, exchange: Exchange) -> None:
        """Take a new exchange into account.

        Raises:
            EpochMismatch: when it is of another run of the daemon.
        """
        self.advance_to(DeviceTime(exchange.device_sent, exchange.epoch))
        consistent = [old for old in self._exchanges if self._agree(old, exchange)]
        self._exchanges = (*consistent, exchange)[-HISTORY:]

    def advance_to(self, device: DeviceTime) -> None:
        """Take a device time into account that has come to pass.

        Raises:
            EpochMismatch: when it is of another run of the daemon.
        """
        device.check(self.epoch)
        self._newest = max(self._newest, device)

    def device_time(self, host: float | None = None) -> DeviceTime:
        """Device time, in τ, at a time of the host's clock, right to within `error_at`.

        Args:
            host: seconds of ``time.monotonic()``, past or to come; None for now. Without meaning on a stepped clock,
                whose newest known time this is.
        """
        if self.rate == 0.0:
            return self._newest
        host = self._now() if host is None else host
        best = self._best(host)
        return DeviceTime(best.device + self.rate * (host - best.host), self.epoch)

    def host_time(self, device: float) -> float:
        """When a device time comes or came, in seconds of ``time.monotonic()``, right to within `error_at` of it.

        Raises:
            EpochMismatch: for a time of another run of the daemon.
            ClockMismatch: on a stepped clock.
        """
        if isinstance(device, DeviceTime):
            device.check(self.epoch)
        if self.rate == 0.0:
            raise ClockMismatch(
                "a stepped clock moves only when `advance` is called: its times have no place on the host's clock",
                field="clock",
                found="stepped",
                expected="free",
            )
        hosts = ((each, each.host + (float(device) - each.device) / self.rate) for each in self._exchanges)
        return min((self._bound(each, host), host) for each, host in hosts)[1]

    @property
    def error(self) -> float:
        """Max error of `device_time` now, in seconds of the host's clock; `rate` times as many τ."""
        return self.error_at(self._now())

    def error_at(self, host: float) -> float:
        """Max error of the agreement at a time of the host's clock, in seconds.

        0 on a stepped clock, as long as nobody moves it but who holds the session.
        """
        return 0.0 if self.rate == 0.0 else self._bound(self._best(host), host)

    def _best(self, host: float) -> Exchange:
        return min(self._exchanges, key=lambda exchange: self._bound(exchange, host))

    def _bound(self, exchange: Exchange, host: float) -> float:
        inside = (exchange.device_sent - exchange.device_received) / self.rate
        way = max(0.0, exchange.received - exchange.sent - inside * (1.0 - self._growth))
        rounding = 4.0 * max(math.ulp(host), math.ulp(exchange.host), math.ulp(exchange.device) / self.rate)
        return (1.0 + self._growth) * 0.5 * way + self._growth * abs(host - exchange.host) + rounding

    def _agree(self, old: Exchange, new: Exchange) -> bool:
        if self.rate == 0.0:
            return False  # one is enough
        difference = old.device + self.rate * (new.host - old.host) - new.device
        return abs(difference) <= self.rate * (self._bound(old, new.host) + self._bound(new, new.host))
