"""The parts of a timeline: bars, measurements, arrows and gaps on one axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from host_client.record import DeviceLost, Event, Read, Uploaded
from spu_lab.timeline.time_base import TimeBase, Unit

Lane: TypeAlias = Literal["host", "uploads", "readings", "emulator", "SPU"]
"""Lane of a bar; uploads and readings are the two directions of the link."""

BarKind: TypeAlias = Literal["differentiation", "wait", "update", "upload", "reading", "computing", "program"]
"""A wait is the host's, for a reading, between a differentiation and its update. Computing is an emulator's: from the
instant of a measurement, which a device would have at once, to its sending."""

ArrowKind: TypeAlias = Literal["submit", "take effect", "reading"]
"""From a differentiation to its upload, from an upload to the program it becomes, from a measurement to its use."""

LANES: dict[BarKind, Lane] = {
    "differentiation": "host",
    "wait": "host",
    "update": "host",
    "upload": "uploads",
    "reading": "readings",
    "computing": "emulator",
    "program": "SPU",
}


@dataclass(frozen=True)
class Bar:
    """Something that lasts.

    Attributes:
        kind: its kind.
        number: of the step that it belongs to, also of the program and its upload; of a reading, its own number. An
            upload whose step is not known has its own number.
        began: place on the axis.
        ended: place on the axis, not before `began`.
        event: that it comes from.
        program: (epoch, sequence) that it belongs to, where there is one.
        row: of its lane; 0 unless it overlaps another one.
    """

    kind: BarKind
    number: int
    began: float
    ended: float
    event: Event
    program: tuple[int, int] | None = None
    row: int = 0

    @property
    def lane(self) -> Lane:
        """Its lane."""
        return LANES[self.kind]

    @property
    def lost(self) -> bool:
        """True for an upload whose program did not take effect."""
        return isinstance(self.event, Uploaded) and self.event.outcome != "took effect"


@dataclass(frozen=True)
class Measurement:
    """A state of the device measured.

    Attributes:
        time: place on the axis.
        began: place at which its average begins; `time` for the state itself.
        step: number of the step whose program was active.
        reading: that brought it to the host.
        used: whether an update used it.
    """

    time: float
    began: float
    step: int
    reading: Read
    used: bool

    @property
    def program(self) -> tuple[int, int]:
        """(epoch, sequence) in force."""
        return self.reading.epoch, self.reading.sequence


@dataclass(frozen=True)
class Arrow:
    """Something that travels.

    Attributes:
        kind: what.
        began: place on the axis at which it sets out.
        ended: place at which it arrives, not before `began`.
        source: bar that it leaves; of a reading, the bar on the link.
        target: bar that it reaches.
    """

    kind: ArrowKind
    began: float
    ended: float
    source: Bar
    target: Bar


@dataclass(frozen=True)
class Gap:
    """A time without the device.

    Attributes:
        began: place at which the host knew.
        ended: place at which it was back; the end of the record, if it was not.
        lost: why, and what was done.
        returned: whether it was back before the record ended.
    """

    began: float
    ended: float
    lost: DeviceLost
    returned: bool = True


@dataclass(frozen=True)
class Timeline:
    """A run on one axis.

    Attributes:
        unit: of the axis; places are in seconds of host time since the record began, or in τ of device time.
        base: that made the places.
        bars: by their begin.
        measurements: by their time.
        arrows: by their begin.
        gaps: by their begin.
        ended: place of the last thing that happened.
        notes: what could not be placed.
    """

    unit: Unit
    base: TimeBase
    bars: tuple[Bar, ...]
    measurements: tuple[Measurement, ...]
    arrows: tuple[Arrow, ...]
    gaps: tuple[Gap, ...]
    ended: float
    notes: tuple[str, ...] = ()

    def of(self, *kinds: BarKind) -> list[Bar]:
        """The bars of these kinds."""
        return [bar for bar in self.bars if bar.kind in kinds]
