"""A run seen in time: what host, link and device did while the others did something else."""

from spu_lab.timeline.elements import Timeline
from spu_lab.timeline.layout import lay_out
from spu_lab.timeline.picture import draw
from spu_lab.timeline.trace import write_trace
from spu_lab.timeline.window import NoSuchWindow, Window, choose_window, parse_steps
from spu_lab.timeline.words import describe_measurements, headline, subtitle

__all__ = [
    "NoSuchWindow",
    "Timeline",
    "Window",
    "choose_window",
    "describe_measurements",
    "draw",
    "headline",
    "lay_out",
    "parse_steps",
    "subtitle",
    "write_trace",
]
