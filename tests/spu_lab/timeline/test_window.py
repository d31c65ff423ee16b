import pytest

from spu_lab.timeline import NoSuchWindow, choose_window, headline, lay_out, parse_steps
from tests.spu_lab.timeline.pipeline import FreeRunning

TIMELINE = lay_out(FreeRunning(steps=20).record())


def test_a_window_that_nobody_asked_for_shows_four_steps_in_the_middle() -> None:
    timeline = lay_out(FreeRunning(steps=20, jitter=0.0).record())
    window = choose_window(timeline)
    bars = [bar for bar in timeline.of("differentiation") if bar.began >= window.began and bar.ended <= window.ended]
    assert [bar.number for bar in bars] == [8, 9, 10, 11]
    assert headline(timeline, window).startswith("Steps 8 to 11:")


def test_steps_that_took_long_are_not_typical() -> None:
    timeline = lay_out(FreeRunning(steps=20, jitter=0.0, lost_after=9).record())
    window = choose_window(timeline)
    (gap,) = timeline.gaps
    seen = min(window.ended, gap.ended) - max(window.began, gap.began)
    assert seen < 0.03 * window.length  # at most the margin


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_short_run_is_shown_whole(steps: int) -> None:
    timeline = lay_out(FreeRunning(steps=steps).record())
    window = choose_window(timeline)
    assert all(window.shows(bar.began, bar.ended) for bar in timeline.of("differentiation", "update"))


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
    with pytest.raises(NoSuchWindow, match="no steps 50:60; it has 1 to 20"):
        choose_window(TIMELINE, steps=(50, 60))
    with pytest.raises(NoSuchWindow, match="nothing lies between"):
        choose_window(TIMELINE, began=2.0, ended=1.0)
    with pytest.raises(NoSuchWindow, match="the record ends at"):
        choose_window(TIMELINE, began=1e4, ended=2e4)
    with pytest.raises(NoSuchWindow, match="such as 40:44"):
        parse_steps("a:b")


def test_the_headline_says_when_the_device_was_lost() -> None:
    timeline = lay_out(FreeRunning(lost_after=5, steps=10).record())
    assert (
        headline(timeline, choose_window(timeline, steps=(3, 8))) == "Steps 3 to 7: the device is lost and comes back"
    )
    assert "evolves" in headline(timeline, choose_window(timeline, steps=(0, 4)))
