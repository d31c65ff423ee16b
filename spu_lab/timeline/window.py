"""Which part of a run is shown."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from spu_lab.timeline.elements import Bar, Timeline

STEPS = 4
"""Steps in a window that nobody asked for: enough to see what overlaps, few enough to read."""

MARGIN = 0.02
"""Around steps, as a part of their extent, times without the device left out."""


class NoSuchWindow(ValueError):
    """The record holds nothing there."""

    remedy: ClassVar[str] = "name steps or times that the record has; the message lists them"


@dataclass(frozen=True)
class Window:
    """A part of the axis.

    Attributes:
        began: its first place.
        ended: its last place.
    """

    began: float
    ended: float

    @property
    def length(self) -> float:
        """In the axis' unit."""
        return self.ended - self.began

    def shows(self, began: float, ended: float) -> bool:
        """Return whether something of this extent is at least partly inside."""
        return ended >= self.began and began <= self.ended


def choose_window(
    timeline: Timeline,
    *,
    steps: tuple[int | None, int | None] | None = None,
    began: float | None = None,
    ended: float | None = None,
) -> Window:
    """A window on a run.

    Args:
        timeline: the run.
        steps: first step, and the one after the last, as in a slice; default: four typical ones, or what
            `began` and `ended` say.
        began: first place, in the axis' unit; overrides that of the steps.
        ended: last place; likewise.

    Raises:
        NoSuchWindow: when there is nothing to show.
    """
    first, after = _extents(
        timeline, steps if steps is not None or (began, ended) != (None, None) else _typical(timeline)
    )
    window = Window(first if began is None else began, after if ended is None else ended)
    if not window.length > 0:
        raise NoSuchWindow(f"nothing lies between {window.began:g} and {window.ended:g} {timeline.unit}")
    if not window.shows(0.0, timeline.ended):
        raise NoSuchWindow(
            f"the record ends at {timeline.ended:g} {timeline.unit}, before {window.began:g} {timeline.unit}"
        )
    return window


def parse_steps(text: str) -> tuple[int | None, int | None]:
    """Steps as ``A:B``, from A up to B − 1, either of which may be left out; or one step as ``A``.

    Raises:
        NoSuchWindow: when it is neither.
    """
    first, colon, after = text.partition(":")
    try:
        begin = int(first) if first else None
        end = (int(after) if after else None) if colon else int(first) + 1
    except ValueError:
        raise NoSuchWindow(f"steps are {text!r}; they must be A:B, such as 40:44") from None
    return begin, end


def _typical(timeline: Timeline) -> tuple[int | None, int | None] | None:
    """The four steps in a row that took nearest to the median of such four; of several, those in the middle."""
    begins: dict[int, float] = {}
    for bar in _steps(timeline):
        begins.setdefault(bar.number, bar.began)
    numbers = sorted(begins)
    if len(numbers) <= STEPS:
        return (numbers[0], numbers[-1] + 1) if numbers else None
    lengths = [begins[after] - begins[first] for first, after in zip(numbers, numbers[STEPS:], strict=False)]
    usual, middle = median(lengths), 0.5 * (len(lengths) - 1)
    digits = 9  # what differs by less took the same time
    best = min(range(len(lengths)), key=lambda i: (round(abs(lengths[i] - usual), digits), abs(i - middle)))
    return numbers[best], numbers[best] + STEPS


def _extents(timeline: Timeline, steps: tuple[int | None, int | None] | None) -> tuple[float, float]:
    """Places of the first and last thing that the host did for these steps; of the whole run without any."""
    if steps is None:
        return 0.0, timeline.ended
    first, after = steps
    bars = [
        bar
        for bar in _steps(timeline)
        if (first is None or bar.number >= first) and (after is None or bar.number < after)
    ]
    if not bars:
        numbers = [bar.number for bar in _steps(timeline)]
        held = f"{min(numbers)} to {max(numbers)}" if numbers else "none"
        raise NoSuchWindow(f"the record has no steps {first or 1}:{'' if after is None else after}; it has {held}")
    began, ended = min(bar.began for bar in bars), max(bar.ended for bar in bars)
    lost = sum(gap.ended - gap.began for gap in timeline.gaps if began <= gap.began and gap.ended <= ended)
    margin = MARGIN * (ended - began - lost)
    return max(0.0, began - margin), ended + margin


def _steps(timeline: Timeline) -> list[Bar]:
    return timeline.of("differentiation", "update")
