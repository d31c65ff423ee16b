"""Comparing clocks: no alarm for a good one, whatever the delays; an alarm for a bad one in time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spu_server.drivers.watch import ClockWatch

TOLERANCE = 2e-4
DELAYS = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40)


@given(DELAYS, st.floats(-TOLERANCE, TOLERANCE), st.floats(-1e3, 1e3))
def test_a_clock_within_its_tolerance_never_raises_an_alarm(delays, ppm, origin):
    watch, now = ClockWatch(TOLERANCE * (1 + 1e-9)), 0.0
    for pause, there, back in delays:
        before = now + pause
        shown = before + there
        now = shown + back
        assert watch.compare(before, origin + shown * (1 + ppm), now + 1e-6) == ""


@pytest.mark.parametrize("rate", [0.0, 0.9, 0.999, 1.001, 1.5, -1.0])
def test_a_clock_of_another_rate_is_found_after_the_delays_over_the_difference(rate):
    watch, delay = ClockWatch(TOLERANCE), 1e-3
    found = [bool(watch.compare(0.5 * k, 0.5 * k * rate, 0.5 * k + delay)) for k in range(20)]
    excess = abs(rate - 1) - TOLERANCE
    assert found.index(True) <= math.ceil(2 * delay / excess / 0.5) + 1


@pytest.mark.parametrize("jump", [-0.1, 0.1, math.nan])
def test_a_clock_that_jumps_is_found_at_once(jump):
    watch = ClockWatch(TOLERANCE)
    assert not watch.compare(0.0, 7.0, 0.01)
    assert not watch.compare(1.0, 8.0, 1.01)
    assert watch.compare(2.0, 9.0 + jump, 2.01)
