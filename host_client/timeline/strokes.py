"""Curves between lanes, and the width of words."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath

FONT = "DejaVu Sans"
"""Comes with matplotlib, so that a picture is the same everywhere."""


def curve(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, *, head: bool = True) -> None:
    """A line from one lane to another, leaving and arriving upright; with a head it is an arrow."""
    (x, y), (u, v) = start, end
    middle = 0.5 * (y + v)
    path = Path([(x, y), (x, middle), (u, middle), (u, v)], [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    style = "-|>,head_length=4,head_width=2" if head else "-"
    arrow = FancyArrowPatch(path=path, arrowstyle=style, color=colour, lw=1.4, zorder=2.5, shrinkA=0, shrinkB=0)
    arrow.set(fill=head, joinstyle="miter")
    axes.add_patch(arrow)


def inches(text: str, size: float) -> float:
    """Width of a text of that many points; of its widest line."""
    font = FontProperties(family=FONT)
    return (
        max(float(TextPath((0, 0), line, size=size, prop=font).get_extents().width) for line in text.split("\n")) / 72
    )


def fitting(texts: Sequence[str], width: float, size: float) -> str:
    """The first text that is at most that many inches wide, or nothing."""
    return next((text for text in texts if inches(text, size) <= width), "")
