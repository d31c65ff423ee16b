import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_client.loop import NoOlderThan, Schedule

TIMES = st.floats(0.0, 1e6, allow_nan=False)
PERIODS = st.floats(1e-2, 1e3)


def test_readings_follow_the_program_one_spacing_after_the_other():
    schedule = Schedule(10.0, readings=3, spacing=2.0, delay=1.0)
    assert [plan.after for plan in schedule.plans()] == [10.0, 12.0, 14.0]
    assert schedule.length == 14.0


def test_with_a_period_none_is_tied_to_the_program():
    schedule = Schedule(10.0, period=4.0)
    assert schedule.plans() == []
    assert schedule.length == 10.0


@given(time=TIMES, length=st.floats(0.0, 50.0), period=PERIODS)
def test_periodic_readings_are_all_the_multiples_under_the_program(time, length, period):
    plans = Schedule(length, period=period).plans_from(time)
    for plan in plans:
        assert 0.0 <= plan.after <= length * (1 + 1e-9) + 1e-6
        multiple = (time + plan.after) / period
        assert math.isclose(multiple, round(multiple), abs_tol=1e-6 * max(1.0, multiple))
    assert abs(len(plans) - length / period) <= 1 + 1e-9


@pytest.mark.parametrize("limits", [{}, {"programs": -1}, {"tau": -0.5}, {"milliseconds": float("nan")}])
def test_a_limit_without_meaning_is_refused(limits):
    with pytest.raises(ValueError, match=r"limit|at least 0"):
        NoOlderThan(**limits)
