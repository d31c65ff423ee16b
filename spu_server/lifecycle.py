"""The states of a device, and what leads from one to another: one table, from which the documents are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class State(Enum):
    """State of the device."""

    STARTING = "starting"
    IDLE = "idle"
    RUNNING = "running"
    HALTED = "halted"
    FAULT = "fault"
    RESTARTING = "restarting"


class Event(Enum):
    """Event of a device."""

    OPENED = "the driver has opened it"
    SESSION = "a session is opened"
    COMMIT = "a program takes effect"
    EMPTY = "a saved state without a program does"
    HALT = "somebody halts it"
    FAIL = "the driver fails"
    RESTART = "the driver is started again"


TABLE: Mapping[State, Mapping[Event, State]] = {
    State.STARTING: {
        Event.OPENED: State.IDLE,
        Event.FAIL: State.FAULT,
    },
    State.IDLE: {
        Event.SESSION: State.IDLE,
        Event.COMMIT: State.RUNNING,
        Event.EMPTY: State.IDLE,
        Event.HALT: State.HALTED,
        Event.FAIL: State.FAULT,
    },
    State.RUNNING: {
        Event.SESSION: State.RUNNING,
        Event.COMMIT: State.RUNNING,
        Event.EMPTY: State.IDLE,
        Event.HALT: State.HALTED,
        Event.FAIL: State.FAULT,
    },
    State.HALTED: {
        Event.SESSION: State.IDLE,
        Event.COMMIT: State.HALTED,  # it was under way when the halt came, which the driver carries out after it
        Event.EMPTY: State.HALTED,
        Event.HALT: State.HALTED,
        Event.FAIL: State.FAULT,
    },
    State.FAULT: {
        Event.COMMIT: State.FAULT,
        Event.EMPTY: State.FAULT,
        Event.HALT: State.FAULT,
        Event.FAIL: State.FAULT,
        Event.RESTART: State.RESTARTING,
    },
    State.RESTARTING: {
        Event.OPENED: State.HALTED,
        Event.COMMIT: State.RESTARTING,
        Event.EMPTY: State.RESTARTING,
        Event.HALT: State.RESTARTING,
        Event.FAIL: State.FAULT,
    },
}
"""The next state by state and event; all else cannot happen: no session opens in a fault, which only a restart ends."""


def following(state: State, event: Event) -> State:
    """The state that an event leads to.

    Raises:
        LookupError: when it cannot happen in `state`.
    """
    if event not in TABLE[state]:
        raise LookupError(f"{event.value!r} cannot happen while the device is {state.value}")
    return TABLE[state][event]


def lifecycle_table() -> str:
    """Return the table as Markdown, one row a state, for the documents."""
    lines = ["| |" + "|".join(f" {event.value} " for event in Event) + "|", "|---" * (len(Event) + 1) + "|"]
    for state, row in TABLE.items():
        cells = [row[event].value if event in row else "–" for event in Event]
        lines.append(f"| **{state.value}** | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
