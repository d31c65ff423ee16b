"""The loop's timing: analog time, delay, age of the readings and overlap, measured from the events; and one turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal, TypeAlias

from host_client.record import Updated, Uploaded, measure_delays
from spu_lab.timeline.elements import Bar, Measurement, Timeline
from spu_lab.timeline.window import Window

Together: TypeAlias = Literal["evolves", "computes", "nothing"]
"""The device's work with the longest overlap with differentiation: its evolution, an emulator's computing, or none."""

WORTH_NAMING = 0.1
"""Overlap from which on host and device are said to work at the same time, as a fraction of the shorter work."""


@dataclass(frozen=True)
class Turns:
    """Measured values of some steps.

    Attributes:
        analog_time: t, median over the readings used, in τ.
        delay: t_d, median of `measure_delays`, in τ; None where there are none.
        ages: min and max number of steps from the one whose program was read to the one that used the reading.
        evolution: fraction of the analog time in which the host differentiated.
        computing: fraction of the emulator's computing in which it did; None where nothing was computed.
        together: what overlapped with differentiation.
    """

    analog_time: float
    delay: float | None
    ages: tuple[int, int]
    evolution: float
    computing: float | None
    together: Together


def measure_turns(timeline: Timeline, window: Window) -> Turns | None:
    """Measure the updates in a window that used readings; None if there are none.

    A reading used by its own step overlaps with no differentiation: the device has its program only when that is over.
    So only the differentiation of later steps is counted, and the error of the clocks makes no overlap.
    """
    programs = {bar.program: bar for bar in timeline.of("program")}
    measurements = {m.reading.number: m for m in timeline.measurements}
    uses = [
        (update.number, measurements[number], programs[measurements[number].program])
        for update in timeline.of("update")
        if window.shows(update.began, update.ended) and isinstance(update.event, Updated)
        for number in update.event.readings
        if number in measurements and measurements[number].program in programs
    ]
    if not uses:
        return None
    differentiations = {bar.number: bar for bar in timeline.of("differentiation")}
    computing = {bar.event: bar for bar in timeline.of("computing")}
    analog = [(program.began, m.time, program.number, step) for step, m, program in uses]
    computed = [
        (bar.began, bar.ended, program.number, step)
        for step, m, program in uses
        if (bar := computing.get(m.reading)) is not None
    ]
    evolution, computation = (_overlap(work, differentiations) for work in (analog, computed))
    analog_total, computed_total = (sum(ended - began for began, ended, *_ in work) for work in (analog, computed))
    differentiated = sum(
        bar.ended - bar.began for step, _, _ in uses if (bar := differentiations.get(step)) is not None
    )
    shorter = min(differentiated, analog_total + computed_total)
    together: Together = "nothing"
    if evolution + computation > WORTH_NAMING * shorter:
        together = "evolves" if evolution >= computation else "computes"
    ages = [step - program.number for step, _, program in uses]
    uploads = [bar.event for bar in timeline.of("program") if isinstance(bar.event, Uploaded)]
    delays = measure_delays(uploads, [m.reading for _, m, _ in uses])
    return Turns(
        analog_time=median(m.reading.age for _, m, _ in uses),
        delay=median(delays) if delays else None,
        ages=(min(ages), max(ages)),
        evolution=evolution / analog_total if analog_total else 0.0,
        computing=computation / computed_total if computed_total else None,
        together=together,
    )


def _overlap(work: Iterable[tuple[float, float, int, int]], differentiations: Mapping[int, Bar]) -> float:
    """Total overlap of the device's work for a step with the differentiation of the steps from then to its use."""
    return sum(
        max(0.0, min(ended, differentiations[step].ended) - max(began, differentiations[step].began))
        for began, ended, made_for, used_by in work
        for step in range(made_for + 1, used_by + 1)
        if step in differentiations
    )


@dataclass(frozen=True)
class Example:
    """A program, the last measurement under it that was used, and the program after it.

    Attributes:
        program: in force.
        measurement: under it.
        following: the program that took effect next.
        next_began: device time at which it did.
    """

    program: Bar
    measurement: Measurement
    following: Bar
    next_began: float

    @property
    def analog_time(self) -> float:
        """t: how long the program had run when it was measured, in τ, as the device reports."""
        return self.measurement.reading.age

    @property
    def delay(self) -> float:
        """t_d: from the measurement to the instant the next program takes effect, in τ, as the device reports."""
        return self.next_began - self.measurement.reading.time


def find_example(timeline: Timeline, window: Window) -> Example | None:
    """The turn nearest to the middle of the window that lies in it whole; None if none does."""
    used = {measurement.program: measurement for measurement in timeline.measurements if measurement.used}
    examples = [
        Example(program, used[program.program], after, after.event.took_effect)
        for program, after in pairwise(timeline.of("program"))
        if program.program in used and program.program is not None and after.program is not None
        if program.program[0] == after.program[0]  # device times of two epochs do not compare
        if isinstance(after.event, Uploaded) and after.event.took_effect is not None
        if program.began >= window.began and after.began <= window.ended
    ]
    middle = 0.5 * (window.began + window.ended)
    return min(examples, key=lambda e: abs(0.5 * (e.program.began + e.following.began) - middle), default=None)
