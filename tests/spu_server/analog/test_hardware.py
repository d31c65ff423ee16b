"""Boards by name and by setting, and what they take in time and energy."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
from pathlib import Path

import pytest
import torch

from spu_link.operators import Dense, LayerRows, LinearRows, Rows
from spu_link.program import Program
from spu_server.analog.hardware import AnalogBoard
from spu_server.analog.presets import PRESETS, preset
from spu_server.timing import Timing


def test_presets_cite_a_source_and_only_one_is_ideal() -> None:
    assert [name for name, board in PRESETS.items() if board.ideal] == ["ideal"]
    assert all(board.source for board in PRESETS.values())


def test_settings_replace_fields_by_name_and_type() -> None:
    board = preset("8-bit").with_settings(
        {
            "dac.bits": "none",
            "adc.bits": "12",
            "adc.ranging": "false",
            "programming.holds": "rows",
            "rails.volts": "inf",
            "averaging.roundings": "4",
        }
    )
    assert board.dac.bits is None
    assert board.adc.bits == 12
    assert not board.adc.ranging
    assert board.programming.holds == "rows"
    assert math.isinf(board.rails.volts)
    assert board.averaging.roundings == 4


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("dac", "8", "PART.FIELD"),
        ("dca.bits", "8", "dac, adc"),
        ("dac.bit", "8", "bits, range, ranging"),
        ("dac.bits", "eight", "number of type int"),
        ("dac.ranging", "yes", "true or false"),
        ("adc.noise", "-1", "at least 0"),
        ("adc.noise", "nan", "at least 0"),
        ("programming.holds", "all", "factors or rows"),
        ("network.rms", "1", "PART.FIELD"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(setting: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        AnalogBoard().with_settings({setting: value})
    assert setting in str(caught.value)


def test_an_unknown_preset_lists_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"paper-16-bit, 8-bit"):
        preset("16-bit")


def test_the_upload_of_the_paper_takes_41_ms_at_its_sizes() -> None:
    """Ours in the paper's model: b = 64, d_z = 10, N = 1e5, 16 bits at 50 Gb/s."""
    n, m = 100_000, 640
    program = Program(Rows(torch.zeros(1, n).expand(m, n)), torch.zeros(n))
    timing = Timing(arrays="paper")
    assert timing.resistors(program.operator) == m * (m + 2 * n)
    assert abs(timing.upload_seconds(program) / 41e-3 - 1.0) < 0.01
    assert abs(timing.upload_seconds(program, kept=True) - 16 * n / 50e9) < 1e-12


def test_factors_take_as_many_resistors_as_elements_once_for_each_array() -> None:
    factors = LayerRows([LinearRows(torch.zeros(4, 30), torch.zeros(2, 4, 20), bias=True)])
    assert Timing().resistors(factors) == 2 * (4 * 30 + 2 * 4 * 20)
    assert Timing(arrays="paper").resistors(factors) == 8 * (8 + 2 * 620)
    assert Timing().resistors(Dense(torch.zeros(5, 5))) == 25


def test_fewer_converters_take_turns() -> None:
    assert Timing(sample=1e-6).conversion_seconds(1000) == 1e-6
    assert Timing(sample=1e-6, converters=64).conversion_seconds(1000) == pytest.approx(16e-6)


def test_energy_adds_up_from_bits_conversions_and_heat() -> None:
    program = Program(Dense(torch.zeros(10, 10)), torch.zeros(10))
    timing = Timing(bits=8, link_energy=1e-12, conversion_energy=1e-13, volts=0.1, resistance=1e3)
    assert timing.upload_joules(program) == pytest.approx(1e-12 * 8 * 110 + 1e-13 * 256 * 10)
    assert timing.reading_joules(10) == pytest.approx(1e-12 * 80 + 1e-13 * 256 * 10)
    assert timing.watts(program.operator) == pytest.approx(100 * 0.01 / 1e3)


def test_the_page_names_every_field_and_every_preset() -> None:
    page = (Path(__file__).parents[3] / "docs" / "analog.md").read_text()
    parts = {f.name: getattr(AnalogBoard(), f.name) for f in dataclasses.fields(AnalogBoard)}
    for part, value in parts.items():
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                assert f"`{part}.{field.name}`" in page
    for name in PRESETS:
        assert f"| `{name}` |" in page


def test_every_part_names_its_source_and_every_field_is_documented_where_it_stands() -> None:
    """A string below each field of each part, as the page says."""
    ideal = AnalogBoard()
    values = [getattr(ideal, field.name) for field in dataclasses.fields(ideal)]
    for part in [type(value) for value in values if dataclasses.is_dataclass(value)] + [AnalogBoard]:
        assert "Source:" in (part.__doc__ or "") or part is AnalogBoard, part.__name__
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(below, ast.Expr), f"{part.__name__}.{ast.unparse(field.target)}"
                assert isinstance(below.value, ast.Constant), f"{part.__name__}.{ast.unparse(field.target)}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dac.bits": "1"}, "at least 2"),
        ({"programming.bits": "0"}, "at least 2"),
        ({"adc.bits": "8", "adc.ranging": "false"}, "neither a finite range"),
        ({"rails.volts": "0"}, "volts of Rails is 0"),
        ({"averaging.roundings": "0"}, "roundings of Averaging is 0"),
        ({"thermal.capacitance": "0"}, "capacitance of Thermal is 0"),
        ({"timing.link": "0"}, "link of Timing is 0"),
    ],
)
def test_boards_that_cannot_be_are_refused_when_they_are_made(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnalogBoard().with_settings(settings)


def test_the_fields_of_a_part_are_set_together() -> None:
    """Neither order of these is right by itself on a board with bits."""
    for settings in (
        {"dac.bits": "8", "dac.ranging": "false", "dac.range": "2"},
        {"dac.range": "2", "dac.ranging": "false", "dac.bits": "8"},
    ):
        assert AnalogBoard().with_settings(settings).dac.range == 2.0
