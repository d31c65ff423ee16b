"""One time base for a run: host time where the device's clock runs freely, device time where it is stepped."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, TypeAlias

from host_client.record import ClockAgreed, Differentiated, Event, Read, Updated, Uploaded

Unit: TypeAlias = Literal["s", "τ"]

EPOCH_GAP = 0.05
"""Between two epochs on an axis of device time, as a part of what came before: their times do not compare."""


class TimeBase(Protocol):
    """Positions of both clocks' instants on one axis."""

    @property
    def unit(self) -> Unit:
        """Of the axis: seconds of host time, or τ of device time."""
        ...

    def of_host(self, host: float) -> float:
        """Place of an instant on the host."""
        ...

    def of_device(self, device: float, epoch: int) -> float | None:
        """Place of a device time; None where nothing relates that epoch to the axis."""
        ...


def time_base(events: Sequence[Event]) -> TimeBase:
    """The base that suits a run: device time if no agreement of the clocks says that device time passes by itself."""
    agreements = [event for event in events if isinstance(event, ClockAgreed)]
    in_device_time = any(_known_device_time(event) is not None for event in events)
    if in_device_time and not any(agreement.rate for agreement in agreements):
        return DeviceTimeBase(events)
    return HostTimeBase(agreements, origin=min(map(_first_host_time, events), default=0.0))


class HostTimeBase:
    """Seconds of host time since the record began; device times are placed by the clocks' agreements.

    Between two agreements of an epoch device times are interpolated, outside they go on at the rate agreed on.
    Agreements that contradict the order of earlier ones, which happens within their error, are left out: so what is
    later on the device is later on the axis.

    Args:
        agreements: of all epochs.
        origin: host time that becomes 0.
    """

    unit: Unit = "s"

    def __init__(self, agreements: Iterable[ClockAgreed], *, origin: float) -> None:
        self._origin = origin
        self._epochs: dict[int, list[ClockAgreed]] = {}
        for agreement in sorted(agreements, key=lambda agreement: agreement.host):
            kept = self._epochs.setdefault(agreement.epoch, [])
            if agreement.rate and (not kept or (agreement.device > kept[-1].device and agreement.host > kept[-1].host)):
                kept.append(agreement)

    def of_host(self, host: float) -> float:
        """Seconds since the origin."""
        return host - self._origin

    def of_device(self, device: float, epoch: int) -> float | None:
        """Seconds since the origin; None for an epoch without agreement."""
        agreements = self._epochs.get(epoch)
        if not agreements:
            return None
        after = bisect_right(agreements, device, key=lambda agreement: agreement.device)
        if 0 < after < len(agreements):
            a, b = agreements[after - 1], agreements[after]
            host = a.host + (b.host - a.host) * ((device - a.device) / (b.device - a.device))
        else:
            nearest = agreements[max(after - 1, 0)]
            host = nearest.host + (device - nearest.device) / nearest.rate
        return self.of_host(host)


class DeviceTimeBase:
    """Device time in τ; what happens on the host lies at the device time that the host knew of by then.

    Epochs follow each other, the first one from its own zero, each later one after a gap.

    Args:
        events: of the run.
    """

    unit: Unit = "τ"

    def __init__(self, events: Iterable[Event]) -> None:
        known = sorted(filter(None, map(_known_device_time, events)))
        extents: dict[int, tuple[float, float]] = {}
        for _, epoch, time in known:
            first, last = extents.get(epoch, (time, time))
            extents[epoch] = (min(first, time), max(last, time))
        self._shifts: dict[int, float] = {}
        end = 0.0
        for epoch, (first, last) in extents.items():  # in the order in which the host saw them
            self._shifts[epoch] = end * (1.0 + EPOCH_GAP) - first if self._shifts else 0.0
            end = last + self._shifts[epoch]
        self._hosts: list[float] = []
        self._places: list[float] = []
        for host, epoch, time in known:
            self._hosts.append(host)
            self._places.append(max([time + self._shifts[epoch], *self._places[-1:]]))

    def of_host(self, host: float) -> float:
        """The newest device time that the host knew of at that instant; the first one, before it knew any."""
        index = bisect_right(self._hosts, host) - 1
        return self._places[max(index, 0)] if self._places else 0.0

    def of_device(self, device: float, epoch: int) -> float | None:
        """Device time, shifted behind the epochs before; None for an epoch that nothing is known of."""
        return device + self._shifts[epoch] if epoch in self._shifts else None


def _known_device_time(event: Event) -> tuple[float, int, float] | None:
    """Return (host time, epoch, device time) of an event from which the host learns the device time."""
    match event:
        case ClockAgreed():
            return event.host, event.epoch, event.device
        case Uploaded(epoch=int(epoch), took_effect=float(time)):
            return event.ended, epoch, time
        case Read():
            return event.received, event.epoch, event.time
    return None


def _first_host_time(event: Event) -> float:
    match event:
        case Read():
            return event.received
        case Uploaded() | Differentiated() | Updated():
            return event.began
        case _:
            return event.host
