"""The table of states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spu_server.lifecycle import TABLE, Event, State, following
from spu_server.supervisor import RESTARTS, Backoff


@given(st.lists(st.sampled_from(Event)))
def test_whatever_happens_the_device_is_in_one_of_its_states_and_a_failure_is_a_fault(events: list[Event]) -> None:
    state = State.STARTING
    opened = False
    for event in events:
        before = state
        if event not in TABLE[state]:
            with pytest.raises(LookupError, match=before.name.lower()):
                following(state, event)
            continue
        state = following(state, event)
        opened = opened or event is Event.OPENED
        if event is Event.FAIL:
            assert state is State.FAULT
        if before is State.FAULT and state is not State.FAULT:
            assert (event, state) == (Event.RESTART, State.RESTARTING)
        if state is State.RUNNING and before is not State.RUNNING:
            assert (before, event) == (State.IDLE, Event.COMMIT)
        if event is Event.HALT:
            assert state is not State.RUNNING
    assert opened or state in (State.STARTING, State.FAULT, State.RESTARTING)


def test_every_state_can_be_reached_and_every_one_but_the_end_can_fail_and_be_left() -> None:
    reached, new = {State.STARTING}, {State.STARTING}
    while new:
        new = {after for state in new for after in TABLE[state].values()} - reached
        reached |= new
    assert reached == set(State) == set(TABLE)
    assert all(row[Event.FAIL] is State.FAULT for row in TABLE.values())
    assert all(set(row.values()) != {state} for state, row in TABLE.items())


def test_a_halt_is_possible_whatever_the_device_is_doing() -> None:
    assert all(Event.HALT in row for state, row in TABLE.items() if state is not State.STARTING)


def test_restarts_come_slower_and_slower_and_end() -> None:
    backoff = Backoff()
    waits = [backoff.next(worked=False) for _ in range(RESTARTS + 1)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, None]
    assert backoff.next(worked=True) == 0.1
