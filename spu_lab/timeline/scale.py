"""From places on the axis to inches; a long time without the device, in which the host waited, is drawn short."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

from matplotlib.ticker import MaxNLocator

from spu_lab.timeline.elements import Gap, Timeline
from spu_lab.timeline.window import Window

FRACTION = 0.2
"""Fraction of the picture's width that a gap gets which would take more."""

BEYOND = 1.0
"""Inches beyond the picture's edges at which everything ends that lies further out."""


class Scale:
    """Places in a window as inches from its left.

    Args:
        timeline: the run.
        window: what is shown of it.
        width: of the picture, in inches.

    Attributes:
        squeezed: gaps that are drawn shorter than they were.
    """

    def __init__(self, timeline: Timeline, window: Window, width: float) -> None:
        self._width = width
        self.squeezed = _squeezed(timeline, window)
        gone = sum(gap.ended - gap.began for gap in self.squeezed)
        per_unit = width * (1.0 - FRACTION * len(self.squeezed)) / max(window.length - gone, 1e-12)
        self._places, self._inches = [window.began], [0.0]
        for gap in self.squeezed:
            self._add(gap.began, per_unit * (gap.began - self._places[-1]))
            self._add(gap.ended, FRACTION * width)
        self._add(window.ended, per_unit * (window.ended - self._places[-1]))
        self._per_unit = per_unit

    def _add(self, place: float, inches: float) -> None:
        self._places.append(place)
        self._inches.append(self._inches[-1] + inches)

    def __call__(self, place: float) -> float:
        """Inches from the left; kept near the picture."""
        after = min(max(bisect_right(self._places, place), 1), len(self._places) - 1)
        began, ended = self._places[after - 1], self._places[after]
        left, right = self._inches[after - 1], self._inches[after]
        slope = (right - left) / (ended - began) if ended > began else self._per_unit
        return min(max(left + slope * (place - began), -BEYOND), self._width + BEYOND)

    def ticks(self, origin: float, unit: float) -> list[float]:
        """Round numbers for the axis, as places: multiples of a round number of `unit` from `origin` on, none in a gap.

        Args:
            origin: place of number 0.
            unit: length of 1.
        """
        spans = [
            (a, b) for (a, b) in pairwise(self._places) if (a, b) not in {(g.began, g.ended) for g in self.squeezed}
        ]
        locator = MaxNLocator(8, steps=[1, 2, 2.5, 5, 10])
        marks = locator.tick_values(0.0, sum(b - a for a, b in spans) / unit)
        step = marks[1] - marks[0]
        found = []
        for began, ended in spans:
            number = -(-(began - origin) // (unit * step))
            while (place := origin + number * step * unit) <= ended + 1e-9 * unit:
                found.append(place)
                number += 1
        return found


def _squeezed(timeline: Timeline, window: Window) -> list[Gap]:
    """Return gaps inside the window, in which the host did nothing, that would take more than `FRACTION` of it."""
    inside = [gap for gap in timeline.gaps if window.began < gap.began and gap.ended < window.ended]
    work = timeline.of("differentiation", "update")
    idle = [gap for gap in inside if not any(bar.began < gap.ended and bar.ended > gap.began for bar in work)]
    return [gap for gap in idle if gap.ended - gap.began > FRACTION * window.length]
