"""Settings: options before the environment before the file; every bad one is named."""

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from spu_server.cli import app
from spu_server.config import ServeSettings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ServeSettings.model_fields:
        monkeypatch.delenv(f"SPU_{name.upper()}", raising=False)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "spu.toml"
    path.write_text('rate = 3.0\ncells = 30\nseed = 3\nlisten = ["unix:/tmp/a", "127.0.0.1:0"]\n')
    return path


def test_without_anything_the_defaults_hold():
    settings = ServeSettings.load(None)
    assert settings.listen == ("unix:/tmp/spu.sock",)
    assert (settings.driver, settings.clock, settings.seed) == ("emulator", "free", 0)
    assert settings.rate is None


def test_options_go_before_the_environment_and_that_before_the_file(file, monkeypatch):
    monkeypatch.setenv("SPU_RATE", "2.0")
    monkeypatch.setenv("SPU_CELLS", "20")
    settings = ServeSettings.load(file, rate=1.0, seed=None)
    assert (settings.rate, settings.cells, settings.seed) == (1.0, 20, 3)
    assert settings.listen == ("unix:/tmp/a", "127.0.0.1:0")


def test_addresses_in_the_environment_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("SPU_LISTEN", "unix:/tmp/a,127.0.0.1:0")
    assert ServeSettings.load(None).listen == ("unix:/tmp/a", "127.0.0.1:0")


BAD = {
    "rate": [0.0, -1.0, float("nan"), float("inf")],
    "tau": [0.0, -1.0, float("nan"), float("inf")],
    "seed": [-1, 2**63],
    "cells": [0, -1],
    "max_bytes": [0],
    "clock": ["broken"],
    "log_level": ["loud"],
    "listen": [[], ["nowhere"], ["unix:"], [":1"], ["127.0.0.1"], ["127.0.0.1:http"], ["127.0.0.1:65536"]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(ValidationError) as caught:
        ServeSettings.load(None, **{name: value})
    assert [error["loc"][0] for error in caught.value.errors()] == [name]


@pytest.mark.parametrize(
    ("options", "environment", "told"),
    [
        (["--rate", "0"], {}, "--rate"),
        (["--clock", "stepped", "--rate", "1"], {}, "--rate"),
        (["--max-bytes", "0"], {}, "--max-bytes"),
        (["--listen", "[red]x[/nonsense]"], {}, "[red]x[/nonsense]"),
        (["--seed", "one"], {}, "--seed"),
        ([], {"SPU_MAX_BYTES": "many"}, "--max-bytes"),
        ([], {"SPU_LISTEN": "nowhere"}, "--listen"),
    ],
)
def test_the_command_ends_with_exit_code_2_and_the_name_of_the_option(options, environment, told):
    result = CliRunner().invoke(app, ["serve", *options], env={"COLUMNS": "300", **environment})
    assert result.exit_code == 2
    assert told in result.output


@pytest.mark.parametrize(
    ("text", "told"),
    [("rate = ", "cannot be read"), ("speed = 3.0", "--speed"), ("rate = -1.0", "--rate"), ("rate = '\xff", "read")],
)
def test_a_bad_file_is_named(tmp_path, text, told):
    path = tmp_path / "spu.toml"
    path.write_bytes(text.encode("latin-1"))
    result = CliRunner().invoke(app, ["serve", "--config", str(path)], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert told in result.output


def test_all_problems_are_told_at_once():
    result = CliRunner().invoke(app, ["serve", "--rate", "0", "--cells", "0"], env={"COLUMNS": "300"})
    assert "--rate" in result.output
    assert "--cells" in result.output


def test_drivers_are_listed():
    result = CliRunner().invoke(app, ["drivers"], env={"COLUMNS": "300"})
    assert result.exit_code == 0
    assert "emulator" in result.output
