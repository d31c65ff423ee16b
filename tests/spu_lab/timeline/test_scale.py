from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spu_lab.timeline import Window, choose_window, lay_out
from spu_lab.timeline.scale import FRACTION, Scale
from tests.spu_lab.timeline.pipeline import FreeRunning

LOST = lay_out(FreeRunning(lost_after=5, steps=10, away=20.0).record())


@given(began=st.floats(0.0, 20.0), length=st.floats(0.01, 30.0), places=st.lists(st.floats(-1.0, 25.0), min_size=2))
def test_what_is_later_lies_further_right(began: float, length: float, places: list[float]) -> None:
    scale = Scale(LOST, Window(began, began + length), 8.0)
    inches = [scale(place) for place in sorted(places)]
    assert all(a <= b + 1e-9 for a, b in pairwise(inches))
    assert scale(began) == pytest.approx(0.0)
    assert scale(began + length) == pytest.approx(8.0)


def test_a_long_time_without_the_device_in_which_the_host_waited_is_drawn_short() -> None:
    (gap,) = LOST.gaps
    scale = Scale(LOST, choose_window(LOST, steps=(3, 8)), 8.0)
    assert scale.squeezed == [gap]
    assert scale(gap.ended) - scale(gap.began) == pytest.approx(8.0 * FRACTION)
    ticks = scale.ticks(0.0, 1e-3)
    assert 4 <= len(ticks) <= 12
    assert not any(gap.began < tick < gap.ended for tick in ticks)


def test_without_a_long_gap_the_scale_is_even_and_its_ticks_are_round() -> None:
    timeline = lay_out(FreeRunning(steps=20).record())
    scale = Scale(timeline, Window(0.1, 0.3), 8.0)
    assert scale.squeezed == []
    assert scale(0.15) == pytest.approx(2.0)
    assert scale.ticks(0.1, 1e-3) == pytest.approx([0.1 + 0.025 * k for k in range(9)])
