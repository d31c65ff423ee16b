"""The specification of a device: its limits, its verdicts, and the miniature."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from spu_lab.experiments import specification as experiment
from spu_lab.studies.specification import (
    AVERAGED,
    KNOBS,
    PLAIN,
    READINGS,
    REFINED,
    REFINEMENTS,
    Knob,
    find_limit,
    is_looser,
)
from spu_lab.studies.study import DeviceNotTaken

BY_NAME = {knob.name: knob for knob in KNOBS}
NOISE = replace(BY_NAME["noise"], values=(1e-8, 1e-6, 1e-4))


@pytest.mark.parametrize(
    ("errors", "limit"),
    [([1.0, 2.9, 9.0], 1e-6), ([1.0, 3.0, 2.0], 1e-4), ([5.0, 1.0, 1.0], None), ([1.0, 9.0, 1.0], 1e-8)],
)
def test_the_limit_is_the_worst_value_before_the_first_that_fails(errors: list[float], limit: float | None) -> None:
    by_value = {value: [0.0, error, 100.0] for value, error in zip(NOISE.values, errors, strict=True)}
    assert find_limit(NOISE, by_value, [1.0, 1.0, 7.0]) == limit


def test_a_limit_is_looser_if_a_worse_device_meets_it() -> None:
    assert is_looser(NOISE, 1e-6, 1e-8)
    assert is_looser(NOISE, 1e-8, None)
    assert not is_looser(NOISE, 1e-6, 1e-6)
    assert is_looser(BY_NAME["t"], 1e2, 1e3)
    assert not is_looser(BY_NAME["converters"], 20, 16)


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_each_value_is_that_of_one_device_and_a_way_to_read_it(knob: Knob) -> None:
    plain = [knob.device(value, PLAIN) for value in knob.values]
    assert all(a != b for a, b in itertools.pairwise(plain))
    assert knob.device(knob.values[0], REFINED) == replace(plain[0], refinements=REFINEMENTS)
    averaged = knob.device(knob.values[0], AVERAGED)
    assert averaged.board == {**plain[0].board, "averaging.roundings": str(READINGS)}


def test_claims_of_the_paper_are_judged_by_the_limit_of_plain_readings() -> None:
    sixteen, refined, averaged = experiment.judge(BY_NAME["converters"], {PLAIN: 20, REFINED: 16, AVERAGED: None})
    assert not sixteen.holds
    assert "16 bits" in sixteen.claim
    assert refined.holds
    assert refined.outcome == "The limit is 16, and 20 with plain readings."
    assert not averaged.holds
    assert experiment.judge(BY_NAME["noise"], {PLAIN: 1e-4, REFINED: 1e-4, AVERAGED: 1e-4})[0].holds
    assert not experiment.judge(BY_NAME["noise"], {PLAIN: None, REFINED: None, AVERAGED: None})[0].holds


def test_the_miniature_writes_every_file(tmp_path: Path) -> None:
    plan = replace(experiment.MINIATURE, knobs=[replace(BY_NAME["converters"], values=(20, 8))], steps=2)
    experiment.reproduce(plan, tmp_path, "inproc:", Console(file=StringIO(), width=120))
    rows = list(csv.DictReader((tmp_path / "specification.csv").read_text().splitlines()))
    assert len(rows) == 1 + 2 * 3
    assert all(float(row["error"]) > 0.0 for row in rows)
    content = json.loads((tmp_path / "specification.json").read_text())
    assert content["status"] == "finished"
    assert set(content["limits"]) == {"converters"}
    table = (tmp_path / "specification.md").read_text()
    assert "| bits of converters (DAC and ADC) | exact |" in table
    assert all(verdict["sentence"] in table for verdict in content["verdicts"])
    assert (tmp_path / "specification.png").stat().st_size > 10_000


def test_a_device_that_is_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotTaken, match="specification makes devices of its own"):
        experiment.run(tmp_path, "unix:/tmp/spu.sock", Console(file=StringIO()))
