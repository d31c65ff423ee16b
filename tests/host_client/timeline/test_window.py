import pytest

from host_client.timeline import NoSuchWindow, choose_window, headline, lay_out, parse_steps
from tests.host_client.timeline.pipeline import FreeRunning

TIMELINE = lay_out(FreeRunning(steps=20).record())


def test_a_window_that_nobody_asked_for_shows_four_steps_in_the_middle() -> None:
    window = choose_window(TIMELINE)
    bars = [bar for bar in TIMELINE.of("differentiation") if bar.began >= window.began and bar.ended <= window.ended]
    assert [bar.number for bar in bars] == [8, 9, 10, 11]
    assert headline(TIMELINE, window).startswith("Steps 8 to 11:")


def test_steps_and_times_choose_a_window() -> None:
    steps = choose_window(TIMELINE, steps=(3, 5))
    bars = {bar.number: bar for bar in TIMELINE.of("differentiation")}
    assert steps.began <= bars[3].began
    assert bars[4].ended <= steps.ended <= bars[5].ended
    window = choose_window(TIMELINE, began=0.2, ended=0.3)
    assert (window.began, window.ended) == (0.2, 0.3)
    assert choose_window(TIMELINE, steps=(3, 5), ended=steps.ended + 0.1).ended == steps.ended + 0.1
    assert choose_window(TIMELINE, began=0.2).ended == TIMELINE.ended


@pytest.mark.parametrize(
    ("text", "steps"), [("40:44", (40, 44)), ("40:", (40, None)), (":4", (None, 4)), ("7", (7, 8)), (":", (None, None))]
)
def test_steps_are_written_as_slices(text: str, steps: tuple[int | None, int | None]) -> None:
    assert parse_steps(text) == steps


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(NoSuchWindow, match="no steps 50:60; it has 0 to 19"):
        choose_window(TIMELINE, steps=(50, 60))
    with pytest.raises(NoSuchWindow, match="nothing lies between"):
        choose_window(TIMELINE, began=2.0, ended=1.0)
    with pytest.raises(NoSuchWindow, match="the record ends at"):
        choose_window(TIMELINE, began=1e4, ended=2e4)
    with pytest.raises(NoSuchWindow, match="such as 40:44"):
        parse_steps("a:b")
