"""The words above a timeline come from what was recorded."""

from itertools import pairwise
from statistics import median

import pytest

from host_client.record import DelayMeter, DeviceBack, Record
from spu_lab.timeline import Window, choose_window, describe_measurements, headline, lay_out
from spu_lab.timeline.turns import find_example
from tests.spu_lab.timeline.pipeline import Emulated, FreeRunning, Stepped


def words(run: Emulated | FreeRunning | Stepped) -> tuple[str, str]:
    timeline = lay_out(run.record())
    window = choose_window(timeline)
    return headline(timeline, window).partition(": ")[2], describe_measurements(timeline, window)


@pytest.mark.parametrize("error", [0.0, 0.02])
def test_steps_that_wait_for_their_own_readings_take_turns_also_where_the_clocks_disagree(error: float) -> None:
    title, times = words(Emulated(error=error))
    assert title == "host and device take turns"
    assert times == "measured medians: t = 50 τ, t_d = 77,000 τ, each update uses the reading of its own step"


def test_what_overlaps_on_a_fast_clock_is_the_emulators_computing() -> None:
    title, times = words(Emulated(age=1))
    assert title == "the emulator computes while the host differentiates"
    assert "readings are 1 step old when used" in times
    assert "of the emulator's computing overlaps with differentiation" in times


def test_on_a_slow_clock_the_device_evolves_while_the_host_differentiates() -> None:
    title, times = words(Emulated(age=1, rate=2000.0, computing=0.001))
    assert title == "the device evolves while the host differentiates"
    assert "of the analog time overlaps with differentiation" in times
    assert words(FreeRunning(jitter=0.0, analog_time=30.0))[0] == "the device evolves while the host differentiates"


def test_old_readings_whose_programs_took_effect_too_late_to_overlap_are_no_overlap() -> None:
    assert words(Emulated(age=1, upload=0.05, computing=0.0))[0] == "host and device take turns"


def test_in_device_time_nothing_is_said_of_overlap() -> None:
    timeline = lay_out(Stepped(steps=4, delay=10.0).record())
    window = choose_window(timeline)
    assert headline(timeline, window) == "Steps 1 to 4, in device time"
    assert (
        describe_measurements(timeline, window)
        == "measured medians: t = 50 τ, t_d = 10 τ, each update uses the reading of its own step"
    )


def test_a_window_without_a_reading_says_so() -> None:
    timeline = lay_out(Emulated(age=3).record())
    began, ended = 0.0, timeline.of("differentiation")[1].ended
    assert headline(timeline, Window(began, ended)).endswith(", without a reading")
    assert describe_measurements(timeline, Window(began, ended)) == ""


@pytest.mark.parametrize("run", [FreeRunning(jitter=0.0, lost_after=5, steps=12), FreeRunning(upload=0.08), Emulated()])
def test_what_belongs_to_a_step_has_its_number_whatever_the_device_counts(run: FreeRunning | Emulated) -> None:
    timeline = lay_out(run.record())
    for arrow in timeline.arrows:
        if arrow.kind in ("submit", "take effect"):
            assert arrow.source.number == arrow.target.number
    programs = {bar.program: bar.number for bar in timeline.of("program")}
    assert all(programs[m.program] == m.step for m in timeline.measurements)
    assert min(bar.number for bar in timeline.bars if bar.lane == "host") == 1


def test_an_emulator_computes_between_a_measurement_and_its_sending() -> None:
    timeline = lay_out(Emulated(steps=3).record())
    computing = timeline.of("computing")
    assert [bar.number for bar in computing] == [1, 2, 3]
    assert [bar.ended - bar.began for bar in computing] == pytest.approx([0.04] * 3)
    assert [bar.began for bar in computing] == pytest.approx([m.time for m in timeline.measurements])
    assert lay_out(Emulated(steps=3, driver="board").record()).of("computing") == []


def test_the_delay_is_the_same_wherever_it_is_shown() -> None:
    run = Emulated()
    meter = DelayMeter()
    for event in run.events():
        meter(event)
    timeline = lay_out(run.record())
    example = find_example(timeline, choose_window(timeline))
    assert example is not None
    delay = median(meter.delays)
    assert delay == pytest.approx(77_000.0)
    assert example.delay == pytest.approx(77_000.0)
    programs = timeline.of("program")
    seconds = median(b.began - a.began for a, b in pairwise(programs))
    assert seconds * run.rate == pytest.approx(delay + 50.0)


def test_a_device_that_did_not_come_back_is_not_said_to_have() -> None:
    events = FreeRunning(lost_after=5, steps=10).events()
    back = next(place for place, event in enumerate(events) if isinstance(event, DeviceBack))
    timeline = lay_out(Record({}, tuple(events[:back])))
    assert headline(timeline, choose_window(timeline, steps=(3, None))).endswith(": the device is lost")


def test_without_a_device_there_is_no_delay() -> None:
    assert DelayMeter().delays == []
    assert describe_measurements(lay_out(Record({}, ())), Window(0.0, 1.0)) == ""
