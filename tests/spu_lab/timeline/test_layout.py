from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_client.record import (
    ClockAgreed,
    DeviceLost,
    Differentiated,
    Event,
    Read,
    Record,
    Updated,
    Uploaded,
)
from spu_lab.timeline import choose_window, lay_out
from spu_lab.timeline.time_base import HostTimeBase
from spu_lab.timeline.turns import find_example
from tests.profiles import examples
from tests.spu_lab.timeline.pipeline import FreeRunning, Stepped

SECONDS = st.floats(0.001, 0.1)
FREE = st.builds(
    FreeRunning,
    steps=st.integers(1, 15),
    differentiation=SECONDS,
    update=st.floats(0.0, 0.01),
    upload=SECONDS,
    reply=st.floats(0.0, 0.02),
    rate=st.sampled_from([1e2, 1e3, 1e6]),
    drift=st.floats(-1e-4, 1e-4),
    error=st.floats(0.0, 0.005),
    analog_time=st.floats(0.0, 50.0),
    readings=st.integers(1, 3),
    jitter=st.floats(0.0, 0.9),
    lost_after=st.none() | st.integers(0, 12),
    seed=st.integers(0, 100),
)
STEPPED = st.builds(Stepped, steps=st.integers(1, 6), analog_time=st.floats(0, 100), delay=st.floats(0, 50))


def record(*events: Event) -> Record:
    return Record({"format": 1}, events)


@given(run=FREE | STEPPED)
@settings(max_examples=examples(150))
def test_bars_and_arrows_go_forward_and_what_cannot_overlap_does_not(run: FreeRunning | Stepped) -> None:
    timeline = lay_out(run.record())
    events = run.record().events
    assert all(bar.began <= bar.ended <= timeline.ended for bar in timeline.bars)
    assert all(arrow.began <= arrow.ended for arrow in timeline.arrows)
    assert all(m.began <= m.time for m in timeline.measurements)
    assert all(gap.began <= gap.ended for gap in timeline.gaps)
    for kinds in (("differentiation", "wait", "update"), ("program",)):
        bars = timeline.of(*kinds)
        assert {bar.row for bar in bars} <= {0}
        assert all(a.ended <= b.began + 1e-9 for a, b in pairwise(bars))
    for lane in ("host", "uploads", "readings", "SPU"):  # nor do others, in one row
        rows: dict[int, float] = {}
        for bar in timeline.bars:
            if bar.lane == lane:
                assert rows.get(bar.row, -1.0) <= bar.began + 1e-9
                rows[bar.row] = bar.ended
    # Nothing is forgotten.
    assert len(timeline.of("upload")) == sum(isinstance(event, Uploaded) for event in events)
    assert len(timeline.of("reading")) == len(timeline.measurements) == sum(isinstance(event, Read) for event in events)
    assert len([a for a in timeline.arrows if a.kind == "take effect"]) == len(timeline.of("program"))
    used = sum(len(event.readings) for event in events if isinstance(event, Updated))
    assert len([a for a in timeline.arrows if a.kind == "reading"]) == used
    assert timeline.notes == ()


@given(run=FREE)
@settings(max_examples=examples(50))
def test_device_times_keep_their_order_and_lie_within_the_error_of_the_clocks(run: FreeRunning) -> None:
    events = run.events()
    base = HostTimeBase((event for event in events if isinstance(event, ClockAgreed)), origin=0.0)
    for read in (event for event in events if isinstance(event, Read)):
        place = base.of_device(read.sent, read.epoch)
        assert place is not None
        earlier = base.of_device(read.time, read.epoch)
        assert earlier is not None
        assert earlier <= place
        if run.lost_after is None:  # then the simulation's own relation still is that of its last epoch
            true = run.zero + read.sent / (run.rate * (1.0 + run.drift))
            ahead = max(0.0, true - max(e.host for e in events if isinstance(e, ClockAgreed)))
            assert abs(place - true) <= 2.0 * run.error + 2.0 * abs(run.drift) * (ahead + 1.0) + 1e-6


def test_a_program_runs_until_the_next_one_takes_effect() -> None:
    timeline = lay_out(FreeRunning(jitter=0.0, error=0.0).record())
    programs = timeline.of("program")
    assert [bar.number for bar in programs] == list(range(1, len(programs) + 1))
    assert all(a.ended == b.began for a, b in pairwise(programs))
    assert programs[-1].ended == timeline.ended


def test_colours_may_follow_a_gradient_from_upload_to_update() -> None:
    timeline = lay_out(FreeRunning().record())
    for arrow in timeline.arrows:
        match arrow.kind:
            case "submit":
                assert isinstance(arrow.target.event, Uploaded)
                assert arrow.target.event.step == arrow.source.number
            case "take effect":
                assert arrow.source.program == arrow.target.program
            case "reading":
                assert isinstance(arrow.target.event, Updated)
                assert isinstance(arrow.source.event, Read)
                assert arrow.source.event.number in arrow.target.event.readings


def test_dropped_uploads_lie_in_a_row_of_their_own() -> None:
    timeline = lay_out(FreeRunning(upload=0.09, steps=12).record())
    uploads = timeline.of("upload")
    assert any(bar.lost for bar in uploads)
    assert {bar.row for bar in uploads if not bar.lost} == {0}
    assert {bar.row for bar in uploads if bar.lost} == {1}
    assert all(bar.program is None for bar in uploads if bar.lost)


def test_a_dropped_upload_ends_where_the_newer_one_was_submitted() -> None:
    def dropped(number: int, began: float, ended: float) -> Uploaded:
        return Uploaded(number, began, ended, "dropped", None, None, None, 0, None, False)

    timeline = lay_out(record(Differentiated(0, 0.0, 0.5), dropped(1, 1.0, 2.1), dropped(2, 2.0, 3.1)))
    assert [(bar.began, bar.ended, bar.row) for bar in timeline.of("upload")] == [(1.0, 2.0, 1), (2.0, 3.1, 1)]


def test_an_upload_that_was_submitted_early_waits_for_the_one_before() -> None:
    def upload(number: int, began: float, ended: float) -> Uploaded:
        return Uploaded(number, began, ended, "took effect", 0, number, ended, 0, "grpc", False)

    agreed = ClockAgreed(0.0, 0.0, 0, 1.0, 0.0)
    differentiated = [Differentiated(0, 0.0, 1.0), Differentiated(1, 1.0, 2.0)]
    timeline = lay_out(record(agreed, *differentiated, upload(1, 1.0, 4.0), upload(2, 2.0, 6.0)))
    assert [(bar.began, bar.ended, bar.row) for bar in timeline.of("upload")] == [(1.0, 4.0, 0), (4.0, 6.0, 0)]
    submitted = [arrow for arrow in timeline.arrows if arrow.kind == "submit"]
    # Without its step, an upload carries what was differentiated when it was submitted.
    assert [(arrow.source.number, arrow.began, arrow.ended) for arrow in submitted] == [(0, 1.0, 1.0), (1, 2.0, 4.0)]


def test_between_differentiation_and_update_the_host_waits() -> None:
    timeline = lay_out(record(Differentiated(0, 0.0, 1.0), Updated(0, 3.0, 4.0, (), None, "gradient")))
    assert [(bar.kind, bar.began, bar.ended, bar.row) for bar in timeline.bars] == [
        ("differentiation", 0.0, 1.0, 0),
        ("wait", 1.0, 3.0, 0),
        ("update", 3.0, 4.0, 0),
    ]


def test_a_lost_device_is_a_gap_without_evolution_and_its_times_are_not_mixed_up() -> None:
    run = FreeRunning(lost_after=4, away=0.2)
    timeline = lay_out(run.record())
    (gap,) = timeline.gaps
    assert gap.ended - gap.began == pytest.approx(0.2)
    assert gap.lost.policy == "wait"
    programs = timeline.of("program")
    assert {bar.program[0] for bar in programs if bar.program} == {7, 8}
    assert all(bar.ended <= gap.began or bar.began >= gap.ended for bar in programs)
    assert all(m.time <= gap.began or m.time >= gap.ended for m in timeline.measurements)
    failed = [bar for bar in timeline.of("upload") if isinstance(bar.event, Uploaded) and bar.event.outcome == "failed"]
    assert all(bar.ended <= gap.began for bar in failed)


def test_a_device_that_never_came_back_is_lost_to_the_end() -> None:
    timeline = lay_out(
        record(Differentiated(0, 1.0, 2.0), DeviceLost(2.0, "gone", "digital"), Differentiated(1, 2.0, 5.0))
    )
    assert [(gap.began, gap.ended) for gap in timeline.gaps] == [(1.0, 4.0)]


def test_with_a_stepped_clock_the_axis_is_device_time() -> None:
    timeline = lay_out(Stepped(steps=4, analog_time=50.0, delay=10.0).record())
    assert timeline.unit == "τ"
    assert [bar.began for bar in timeline.of("program")] == [0.0, 60.0, 120.0, 180.0]
    assert [m.time for m in timeline.measurements] == [50.0, 110.0, 170.0, 230.0]
    # While the host works the device stands still; an upload is on its way for the delay.
    assert [bar.began for bar in timeline.of("differentiation")] == [0.0, 50.0, 110.0, 170.0]
    assert all(bar.began == bar.ended for bar in timeline.of("differentiation", "update"))
    assert [(bar.began, bar.ended) for bar in timeline.of("upload")][1:] == [
        (50.0, 60.0),
        (110.0, 120.0),
        (170.0, 180.0),
    ]


def test_epochs_of_a_stepped_clock_follow_each_other_with_a_gap() -> None:
    first = Stepped(steps=2).events()
    second = [replace(event, **_later(event)) for event in first]
    timeline = lay_out(record(*first, *second))
    before, after = (
        [bar for bar in timeline.of("program") if bar.program and bar.program[0] == epoch] for epoch in (0, 1)
    )
    assert max(bar.began for bar in before) + 50.0 < min(bar.began for bar in after)
    assert max(bar.ended for bar in before) <= min(bar.began for bar in after)


def _later(event: Event) -> dict[str, float]:
    """The same in another epoch, an hour later."""
    later = {
        "began": 3600.0,
        "ended": 3600.0,
        "received": 3600.0,
        "host": 3600.0,
        "epoch": 1,
        "number": 9,
        "reading": 9,
    }
    return {name: getattr(event, name) + more for name, more in later.items() if hasattr(event, name)}


def test_an_epoch_without_agreement_is_left_out_and_noted() -> None:
    events = [*FreeRunning(steps=3).events(), Read(99, 12, 1, None, 5.0, 1.0, 0.0, 5.1, 1000.05)]
    timeline = lay_out(record(*events))
    assert 99 not in {m.reading.number for m in timeline.measurements}
    assert timeline.notes == ("1 readings of epoch 12 are not shown: nothing relates its device time to the host's",)


def test_updates_recorded_as_one_time_come_one_after_the_other() -> None:
    both = [Updated(0, 1.0, 2.0, (number,), 0.0, "device") for number in (1, 2)]
    timeline = lay_out(record(*both))
    assert [(bar.began, bar.ended, bar.row) for bar in timeline.of("update")] == [(0.0, 0.5, 0), (0.5, 1.0, 0)]


def test_an_update_along_an_average_has_an_arrow_from_each_of_its_readings() -> None:
    reads = [Read(number, 7, 1, None, 10.0 * number, 1.0, 0.0, 10.0 * number, number / 10) for number in (1, 2)]
    timeline = lay_out(
        record(ClockAgreed(0.0, 0.0, 7, 100.0, 0.0), *reads, Updated(0, 0.3, 0.4, (1, 2), 20.0, "device"))
    )
    assert sorted(arrow.source.number for arrow in timeline.arrows if arrow.kind == "reading") == [1, 2]


def test_an_empty_record_is_an_empty_timeline() -> None:
    timeline = lay_out(record())
    assert (timeline.bars, timeline.arrows, timeline.gaps, timeline.ended) == ((), (), (), 0.0)


def test_the_example_has_the_times_that_the_device_reported() -> None:
    timeline = lay_out(FreeRunning(jitter=0.0, error=0.0).record())
    example = find_example(timeline, choose_window(timeline))
    assert example is not None
    assert example.analog_time == pytest.approx(14.0)
    scale = 1000.0 * (1 + 1e-5)
    assert example.delay == pytest.approx((example.following.began - example.measurement.time) * scale, abs=1e-3)
