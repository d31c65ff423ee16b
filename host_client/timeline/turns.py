"""How host and device took turns: analog time, delay, age of the readings and overlap, measured from the events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeAlias

from host_client.record import Updated, Uploaded, measure_delays
from host_client.timeline.elements import Bar, Timeline
from host_client.timeline.window import Window

Together: TypeAlias = Literal["evolves", "computes", "nothing"]
"""The work of the device that overlapped most with differentiation: its evolution, an emulator's computing, or none."""

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
