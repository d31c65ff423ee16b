"""One turn of the loop on which analog time and delay are shown."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from host_client.record import Uploaded
from host_client.timeline.elements import Bar, Measurement, Timeline
from host_client.timeline.window import Window


@dataclass(frozen=True)
class Example:
    """A program, the last measurement under it that was used, and the program after it.

    Attributes:
        program: in force.
        measurement: under it.
        following: the program that took hold next.
        held_next: device time at which it did.
    """

    program: Bar
    measurement: Measurement
    following: Bar
    held_next: float

    @property
    def analog_time(self) -> float:
        """t: how long the program had run when it was measured, in τ, as the device told."""
        return self.measurement.reading.age

    @property
    def delay(self) -> float:
        """t_d: from the measurement to the next program taking hold, in τ, as the device told."""
        return self.held_next - self.measurement.reading.time


def find_example(timeline: Timeline, window: Window) -> Example | None:
    """The turn nearest to the middle of the window that lies in it whole; None if none does."""
    used = {measurement.program: measurement for measurement in timeline.measurements if measurement.used}
    examples = [
        Example(program, used[program.program], after, after.event.took_hold)
        for program, after in pairwise(timeline.of("program"))
        if program.program in used and program.program is not None and after.program is not None
        if program.program[0] == after.program[0]  # device times of two epochs do not compare
        if isinstance(after.event, Uploaded) and after.event.took_hold is not None
        if program.began >= window.began and after.began <= window.ended
    ]
    middle = 0.5 * (window.began + window.ended)
    return min(examples, key=lambda e: abs(0.5 * (e.program.began + e.following.began) - middle), default=None)
