import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_client.loop import NoOlderThan, Sampling

TIMES = st.floats(0.0, 1e6, allow_nan=False)
PERIODS = st.floats(1e-2, 1e3)


def test_readings_follow_the_program_one_spacing_after_the_other():
    schedule = Sampling(10.0, readings=3, spacing=2.0, delay=1.0).schedule(None, 20.0)
    assert [read.after for read in schedule.reads] == [10.0, 12.0, 14.0]
    assert (schedule.length, schedule.not_before) == (14.0, 21.0)


def test_with_a_period_none_is_tied_to_the_program_on_a_free_clock():
    schedule = Sampling(10.0, period=4.0).schedule(None, None)
    assert (schedule.reads, schedule.length, schedule.not_before) == ((), 10.0, None)


@given(time=TIMES, length=st.floats(0.0, 50.0), period=PERIODS)
def test_periodic_readings_are_all_the_multiples_under_the_program(time, length, period):
    reads = Sampling(length, period=period).schedule(time, None).reads
    for read in reads:
        assert 0.0 <= read.after <= length * (1 + 1e-9) + 1e-6
        multiple = (time + read.after) / period
        assert math.isclose(multiple, round(multiple), abs_tol=1e-6 * max(1.0, multiple))
    assert abs(len(reads) - length / period) <= 1 + 1e-9


@pytest.mark.parametrize("limits", [{}, {"programs": -1}, {"tau": -0.5}, {"milliseconds": float("nan")}])
def test_a_limit_without_meaning_is_refused(limits):
    with pytest.raises(ValueError, match=r"limit|at least 0"):
        NoOlderThan(**limits)
