"""Positions of the picture's lanes, in inches from the bottom of its axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spu_lab.timeline.elements import Lane

BAR, ROW, PAD, HEAD, BETWEEN, NOTES = 0.27, 0.34, 0.1, 0.13, 0.38, 0.36
"""Inches: a bar's height, a row's, a strip's around its rows, above the host's for words, between strips, and below the
SPU for t and t_d."""


@dataclass(frozen=True)
class Strip:
    """The ground of one lane, or of both directions of the link.

    Attributes:
        name: in bold at its left.
        about: below the name.
        bottom: lower edge.
        top: upper edge.
    """

    name: str
    about: str
    bottom: float
    top: float


def stack(rows: Mapping[Lane, int], *, emulated: bool, notes: bool) -> tuple[tuple[Strip, ...], dict[Lane, float]]:
    """Return the strips, the SPU's at the bottom and the host's on top, and the bottom of each lane's rows.

    Args:
        rows: of each lane.
        emulated: whether there is a lane for an emulator's computing.
        notes: whether there is room for t and t_d below.
    """
    lanes: list[tuple[str, str, tuple[Lane, ...], float]] = [
        ("SPU", "evolves by itself", ("SPU",), 0.0),
        ("link", "readings up,\nuploads down", ("uploads", "readings"), 0.0),
        ("host", "differentiates,\nupdates", ("host",), HEAD),
    ]
    if emulated:
        lanes.insert(1, ("emulator", "computes what a\ndevice has at once", ("emulator",), 0.0))
    strips: list[Strip] = []
    bottoms: dict[Lane, float] = {}
    y = NOTES if notes else 0.05
    for name, about, held, head in lanes:
        bottom, y = y, y + PAD
        for lane in held:
            bottoms[lane], y = y, y + ROW * rows[lane]
        strips.append(Strip(name, about, bottom, y := y + PAD + head))
        y += BETWEEN
    return tuple(strips), bottoms
