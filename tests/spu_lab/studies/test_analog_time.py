"""How long a device must run: bounds on its readings, training with t found at each step, and the miniature."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from host_client import connect
from spu_lab.experiments import analog_time
from spu_lab.experiments.analog_time import AUTO, Training, judge_bound, judge_training
from spu_lab.studies.readings_by_time import Curve, measure_curve, train
from spu_lab.studies.small_problems import KINDS, build
from spu_lab.studies.study import DeviceNotTaken

REGRESSION = KINDS["regression"]


def curve(**changes: object) -> Curve:
    """A curve at t = 1, 10 and 100 τ."""
    values: dict[str, object] = {
        "times": (1.0, 10.0, 100.0),
        "errors": (0.5, 0.2, 0.01),
        "spectral": (0.9, 0.8, 0.3),
        "bounds": (0.01, 0.3),
        "bound_times": (100.0, 5.0),
        "automatic": 30.0,
        "needed": 20.0,
        "by_damping": 300.0,
    }
    return Curve(**{**values, **changes})  # type: ignore[arg-type]


def test_a_bound_holds_from_its_time_on() -> None:
    assert list(curve().bounded_errors) == [math.inf, 0.3, 0.01]


def test_a_reading_above_a_bound_and_a_time_that_is_far_too_long_are_judged() -> None:
    assert [verdict.holds for verdict in judge_bound(REGRESSION, [curve()])] == [True, True]
    above, long = judge_bound(REGRESSION, [curve(errors=(0.5, 0.35, 0.01), needed=1.0)])
    assert not above.holds
    assert above.outcome.startswith("The largest ratio of an error to a bound is 1.17")
    assert not long.holds
    assert "It is 30 times that (max 30), and 0.1 times the t of the bound with λ alone" in long.outcome


def test_found_times_are_compared_with_the_best_fixed_one() -> None:
    fixed = {"5/λ": [Training(2.0, 5.0), Training(4.0, 5.0)], "1/λ": [Training(1.0, 1.0), Training(3.0, 1.0)]}
    near = judge_training(REGRESSION, {AUTO: [Training(2.2, 0.5), Training(2.4, 0.7)], **fixed})
    assert near.holds
    # The geometric mean of 2.2/1 and 2.4/3 is √1.76 = 1.33; the interval of two seeds is wide.
    assert near.outcome.startswith(
        "2.3 (2.2 to 2.4) with a mean t of 0.6/λ, and 2 (1 to 3) with t = 1/λ: a ratio of 1.15, by seed 1.33 (0.00"
    )


def test_a_worse_score_is_a_difference_only_where_seeds_agree_on_it() -> None:
    fixed = {"1/λ": [Training(score, 1.0) for score in (1.0, 1.1, 0.9, 1.0)]}

    def judged(*scores: float) -> bool | None:
        return judge_training(REGRESSION, {AUTO: [Training(score, 1.0) for score in scores], **fixed}).holds

    assert judged(1.5, 1.6, 1.4, 1.5) is False
    assert judged(1.7, 0.2, 0.3, 9.0) is True  # the median is 1.0
    assert judged(1.7, 0.4, 0.9, 9.0) is None
    assert judged(math.inf, math.inf, math.inf, 1.0) is False
    lost = [Training(math.inf, math.nan)] * 3
    assert judge_training(REGRESSION, {AUTO: lost, "1/λ": lost}).holds is False


def test_readings_of_a_network_in_training_keep_their_bounds() -> None:
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        times, bounds = (0.01, 0.1, 1.0, 5.0), (0.01, 0.1, 0.5)
        measured = measure_curve(REGRESSION, 0, session, steps=2, times=times, bounds=bounds)
    assert list(measured.errors) == sorted(measured.errors, reverse=True)
    for error, bound, spectral in zip(measured.errors, measured.bounded_errors, measured.spectral, strict=True):
        assert error <= 1.01 * min(bound, spectral)
    assert measured.needed <= 1.02 * measured.automatic
    assert measured.automatic <= 1.05 * measured.by_damping


def test_the_device_time_of_a_step_is_the_fixed_one() -> None:
    problem = build(REGRESSION, 0)
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        assert train(REGRESSION, problem, session, 3, 0.5) == pytest.approx(0.5)


def test_the_same_seed_gives_the_same_problem() -> None:
    first, second, other = (build(REGRESSION, seed).score() for seed in (1, 1, 2))
    assert first == second != other


def test_the_miniature_writes_every_file(tmp_path: Path) -> None:
    few = {"curve_times": (0.1, 1.0), "bounds": (0.1, 0.5), "warm_up": 2, "fraction": 0.05}
    plan = replace(analog_time.MINIATURE, **few)
    analog_time.reproduce(plan, tmp_path, "inproc:", Console(file=StringIO(), width=120))
    rows = list(csv.DictReader((tmp_path / "analog-time.csv").read_text().splitlines()))
    assert [row["t"] for row in rows] == ["auto", "auto", "5/λ", "5/λ", "0.3/λ", "0.3/λ"]
    assert len((tmp_path / "analog-time-curves.csv").read_text().splitlines()) == 1 + 2 * 2
    content = json.loads((tmp_path / "analog-time.json").read_text())
    assert content["status"] == "finished"
    assert len(content["verdicts"]) == 3
    table = (tmp_path / "analog-time.md").read_text()
    assert all(verdict["sentence"] in table for verdict in content["verdicts"])
    assert (tmp_path / "analog-time.png").stat().st_size > 10_000


def test_a_device_that_is_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotTaken, match="analog-time makes devices of its own"):
        analog_time.run(tmp_path, "unix:/tmp/spu.sock", Console(file=StringIO()))
