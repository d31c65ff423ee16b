"""A run seen in time: what host, link and device did while the others did something else."""

from host_client.timeline.elements import Timeline
from host_client.timeline.layout import lay_out
from host_client.timeline.picture import draw
from host_client.timeline.trace import write_trace
from host_client.timeline.window import NoSuchWindow, Window, choose_window, parse_steps
from host_client.timeline.words import headline, measured, subtitle

__all__ = [
    "NoSuchWindow",
    "Timeline",
    "Window",
    "choose_window",
    "draw",
    "headline",
    "lay_out",
    "measured",
    "parse_steps",
    "subtitle",
    "write_trace",
]
