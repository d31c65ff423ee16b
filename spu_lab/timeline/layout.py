"""From the events of a run to bars, arrows and gaps on one time base. Pure: nothing is drawn here."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

from host_client.record import (
    DeviceBack,
    DeviceLost,
    Differentiated,
    Event,
    Read,
    Record,
    Updated,
    Uploaded,
)
from spu_lab.timeline.elements import Arrow, Bar, Gap, Measurement, Timeline
from spu_lab.timeline.time_base import TimeBase, time_base

EMULATORS = ("emulator", "analog")
"""Drivers that compute their readings."""


def lay_out(record: Record) -> Timeline:
    """Lay out a run.

    A program's evolution lasts until the next one of its epoch takes effect, or the device is lost, or the record ends.
    It has the number of the step whose gradient it carries, whatever the device counts.
    Where the clocks agree with an error, cause comes before effect all the same: nothing takes effect before its upload
    begins, and no reading is sent after it was received.
    """
    base = time_base(record.events)
    layout = _Layout(base, end=max((base.of_host(_last_host_time(event)) for event in record.events), default=0.0))
    layout.host(list(record.of(Differentiated)), list(record.of(Updated)))
    layout.gaps = _gaps(record.events, base, layout.end)
    layout.uploads_and_programs(list(record.of(Uploaded)))
    layout.readings(list(record.of(Read)), emulated=_emulated(record))
    return Timeline(
        unit=base.unit,
        base=base,
        bars=tuple(sorted(layout.bars, key=lambda bar: (bar.began, bar.ended))),
        measurements=tuple(sorted(layout.measurements, key=lambda measurement: measurement.time)),
        arrows=tuple(sorted(layout.arrows, key=lambda arrow: arrow.began)),
        gaps=tuple(layout.gaps),
        ended=max([layout.end, *(bar.ended for bar in layout.bars)]),
        notes=tuple(
            f"{count} {kind} of epoch {epoch} are not shown: nothing relates its device time to the host's"
            for (kind, epoch), count in layout.unplaced.items()
        ),
    )


@dataclass
class _Layout:
    """The layout so far."""

    base: TimeBase
    end: float
    bars: list[Bar] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    unplaced: Counter[tuple[str, int]] = field(default_factory=Counter)
    differentiations: dict[int, Bar] = field(default_factory=dict)
    updates: dict[int, list[Bar]] = field(default_factory=dict)
    steps: dict[tuple[int, int], int] = field(default_factory=dict)
    steps_begun: list[tuple[float, int]] = field(default_factory=list)

    def host(self, differentiated: Sequence[Differentiated], updated: Sequence[Updated]) -> None:
        """Bars of the host's own work."""
        at = self.base.of_host
        work = [Bar("differentiation", event.step, at(event.began), at(event.ended), event) for event in differentiated]
        for (began, ended), together in groupby(updated, key=lambda event: (at(event.began), at(event.ended))):
            events = list(together)  # one after the other, recorded as one time: each gets its part of it
            places = [began + (ended - began) * part / len(events) for part in range(len(events) + 1)]
            parts = zip(events, places, places[1:], strict=False)
            work += [Bar("update", event.step, start, end, event) for event, start, end in parts]
        differentiations = {bar.number: bar for bar in work if bar.kind == "differentiation"}
        for update in [bar for bar in work if bar.kind == "update"]:
            before = differentiations.pop(update.number, update)
            if before.ended < update.began:
                work.append(Bar("wait", update.number, before.ended, update.began, update.event))
        for bar in in_rows(work):
            self.bars.append(bar)
            if bar.kind == "wait":
                continue
            match bar.event:
                case Differentiated(step=step):
                    self.differentiations[step] = bar
                case Updated(readings=numbers):
                    for number in numbers:
                        self.updates.setdefault(number, []).append(bar)

        self.steps_begun = sorted((event.began, event.step) for event in differentiated)

    def uploads_and_programs(self, uploaded: Sequence[Uploaded]) -> None:
        """Bars of uploads, and the programs that they become.

        One upload is on its way at a time: one that was submitted earlier waits until then, and its bar begins then.
        """
        programs = self._programs(uploaded)
        bars, free = [], float("-inf")
        submissions = sorted(self.base.of_host(event.began) for event in uploaded)
        for event in sorted(uploaded, key=lambda event: event.ended):
            submitted, ended = self.base.of_host(event.began), self.base.of_host(event.ended)
            program = programs.get(event.number)
            began = submitted
            if event.outcome != "dropped":
                began = min(max(submitted, free), max(submitted, ended))
                free = max(free, ended)
            else:  # a newer one took its place
                newer = bisect_right(submissions, began)
                ended = min([ended, *submissions[newer : newer + 1]])
            if program is not None:
                ended = min(max(began, program.began), max(began, ended))
            belongs = program.program if program is not None else None
            bars.append(Bar("upload", self._step_of(event), began, ended, event, belongs))
        # What travels lies in the first row; what waited until it was dropped, in another.
        travelled = in_rows(bar for bar in bars if not _dropped(bar))
        second = 1 + max((bar.row for bar in travelled), default=0)
        for bar in travelled + in_rows((bar for bar in bars if _dropped(bar)), first=second):
            self.bars.append(bar)
            assert isinstance(bar.event, Uploaded)
            if (source := self._differentiation_of(bar.event)) is not None:
                self.arrows.append(Arrow("submit", self.base.of_host(bar.event.began), bar.began, source, bar))
            if program := programs.get(bar.event.number):
                self.arrows.append(Arrow("take effect", min(bar.ended, program.began), program.began, bar, program))
        self.bars += programs.values()
        self.steps = {bar.program: bar.number for bar in programs.values() if bar.program is not None}

    def _step_of(self, upload: Uploaded) -> int:
        source = self._differentiation_of(upload)
        return upload.number if source is None else source.number

    def _differentiation_of(self, upload: Uploaded) -> Bar | None:
        """Return the differentiation that an upload is of; if not recorded, the newest one that had begun by then."""
        if upload.step is not None:
            return self.differentiations.get(upload.step)
        begun = bisect_left(self.steps_begun, (upload.began, -1))
        return self.differentiations[self.steps_begun[begun - 1][1]] if begun else None

    def _programs(self, uploaded: Sequence[Uploaded]) -> dict[int, Bar]:
        """The evolution under each program, by the number of its upload."""
        placed: dict[int, list[tuple[float, Uploaded]]] = {}
        for event in uploaded:
            if event.took_effect is None or event.epoch is None:
                continue
            began = self.base.of_device(event.took_effect, event.epoch)
            if began is None:
                self.unplaced["programs", event.epoch] += 1
            else:
                placed.setdefault(event.epoch, []).append((began, event))
        programs = {}
        for epoch, starts in placed.items():
            starts.sort(key=lambda start: (start[0], start[1].sequence))
            ends = [following for (_, _), (following, _) in pairwise(starts)]
            ends.append(self._end_of(epoch, starts[-1][0], placed))
            for (began, event), ended in zip(starts, ends, strict=True):
                sequence = event.sequence if event.sequence is not None else 0
                step = self._step_of(event)
                programs[event.number] = Bar("program", step, began, max(began, ended), event, (epoch, sequence))
        return programs

    def _end_of(self, epoch: int, began: float, placed: dict[int, list[tuple[float, Uploaded]]]) -> float:
        """Return the end of an epoch's last program: the device's loss, the begin of another epoch, or the end."""
        others = [start for other, starts in placed.items() if other != epoch for start, _ in starts]
        ends = [gap.began for gap in self.gaps] + others
        return min((end for end in ends if end >= began), default=max(began, self.end))

    def readings(self, read: Sequence[Read], *, emulated: bool) -> None:
        """Measurements, their way over the link, and the updates that used them.

        An emulator answers later than a device would: what lies between a measurement and its sending is its computing.
        """
        bars, computing = [], []
        for event in read:
            received = self.base.of_host(event.received)
            sent = self.base.of_device(event.sent, event.epoch)
            time = self.base.of_device(event.time, event.epoch)
            began = self.base.of_device(event.time - event.window, event.epoch)
            if sent is None or time is None or began is None:
                self.unplaced["readings", event.epoch] += 1
                continue
            sent = min(sent, received)
            time = min(time, sent)
            program = event.epoch, event.sequence
            step = self.steps.get(program, event.sequence)
            bars.append(Bar("reading", event.number, sent, received, event, program))
            if emulated and time < sent:
                computing.append(Bar("computing", step, time, sent, event, program))
            used = event.number in self.updates
            self.measurements.append(Measurement(time, min(began, time), step, event, used))
        times = {measurement.reading.number: measurement.time for measurement in self.measurements}
        self.bars += in_rows(computing)
        for bar in in_rows(bars):
            self.bars.append(bar)
            for update in self.updates.get(bar.number, []):
                ended = max(update.began, bar.ended)
                self.arrows.append(Arrow("reading", times[bar.number], ended, bar, update))


def in_rows(bars: Iterable[Bar], first: int = 0) -> list[Bar]:
    """Bars by their begin, each in the first row, from `first` on, in which it overlaps no earlier one."""
    placed: list[Bar] = []
    free: list[float] = []
    for bar in sorted(bars, key=lambda bar: (bar.began, bar.ended)):
        row = next((row for row, ended in enumerate(free) if ended <= bar.began), len(free))
        free[row : row + 1] = [bar.ended]
        placed.append(replace(bar, row=first + row))
    return placed


def _emulated(record: Record) -> bool:
    """Return whether the device was one of the drivers that compute what they answer."""
    return (record.header.get("device") or {}).get("driver") in EMULATORS


def _dropped(bar: Bar) -> bool:
    return isinstance(bar.event, Uploaded) and bar.event.outcome == "dropped"


def _gaps(events: Sequence[Event], base: TimeBase, end: float) -> list[Gap]:
    """From each loss of the device to its return; several losses before one return are one gap."""
    gaps: list[Gap] = []
    lost: DeviceLost | None = None
    for event in events:
        if isinstance(event, DeviceLost) and lost is None:
            lost = event
        elif isinstance(event, DeviceBack) and lost is not None:
            gaps.append(Gap(base.of_host(lost.host), max(base.of_host(lost.host), base.of_host(event.host)), lost))
            lost = None
    if lost is not None:
        gaps.append(Gap(base.of_host(lost.host), max(base.of_host(lost.host), end), lost, returned=False))
    return gaps


def _last_host_time(event: Event) -> float:
    match event:
        case Read():
            return event.received
        case Uploaded() | Differentiated() | Updated():
            return event.ended
        case _:
            return event.host
