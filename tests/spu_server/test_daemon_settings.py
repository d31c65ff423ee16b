"""Settings: options before the environment before the file; every bad one is named."""

import pytest
from typer.testing import CliRunner

from spu_server.cli import app
from spu_server.daemon_settings import BadSettings, ServeSettings


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


@pytest.mark.parametrize("text", ["bits=8,preset=ideal", '{"bits": "8", "preset": "ideal"}'])
def test_options_of_the_driver_in_the_environment_are_separated_by_commas(monkeypatch, text):
    monkeypatch.setenv("SPU_DRIVER_OPTION", text)
    assert ServeSettings.load(None).driver_option == {"bits": "8", "preset": "ideal"}


BAD = {
    "rate": [0.0, -1.0, float("nan"), float("inf"), 1e308],
    "tau": [0.0, -1.0, float("nan"), float("inf"), 5e-324],
    "driver_deadline": [0.0, 1e300],
    "seed": [-1, 2**63],
    "cells": [0, -1, 2**63],
    "max_bytes": [0, 2**63],
    "clock": ["broken"],
    "log_level": ["loud"],
    "listen": [
        *([], ["nowhere"], ["unix:"], [":1"], ["127.0.0.1"], ["127.0.0.1:http"], ["127.0.0.1:65536"], ["127.0.0.1:²"]),
        *(["unix:/tmp/a", "unix:/tmp/a"], ["127.0.0.1:50051", "127.0.0.1:50051"]),
    ],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(BadSettings) as caught:
        ServeSettings.load(None, **{name: value})
    assert [where for where, _ in caught.value.problems] == [f"--{name}".replace("_", "-")]


def test_any_port_may_be_asked_for_twice():
    assert ServeSettings.load(None, listen=["127.0.0.1:0"] * 2).listen == ("127.0.0.1:0",) * 2


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--rate", "0"], {}, "--rate"),
        (["--clock", "stepped", "--rate", "1"], {}, "--rate"),
        (["--max-bytes", "0"], {}, "--max-bytes"),
        (["--listen", "[red]x[/nonsense]"], {}, "[red]x[/nonsense]"),
        (["--seed", "one"], {}, "--seed"),
        (["--driver-option", "fast"], {}, "--driver-option"),
        ([], {"SPU_MAX_BYTES": "many"}, "SPU_MAX_BYTES is 'many'"),
        ([], {"SPU_LISTEN": "nowhere"}, "SPU_LISTEN: 'nowhere'"),
        ([], {"spu_rate": "-1"}, "spu_rate is '-1'"),
        ([], {"SPU_DRIVER_OPTION": "fast"}, "SPU_DRIVER_OPTION: 'fast' is not NAME=VALUE"),
        ([], {"SPU_DRIVER_OPTION": "{fast"}, "SPU_DRIVER_OPTION: "),
        (["--rate", "-1"], {"SPU_RATE": "-2"}, "--rate is -1"),
    ],
)
def test_the_command_ends_with_exit_code_2_and_where_the_setting_was_made(options, environment, message):
    result = CliRunner().invoke(app, ["serve", *options], env={"COLUMNS": "300", **environment})
    assert result.exit_code == 2
    assert message in result.output
    assert options or "--" not in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate = ", "{path} cannot be read: it is not TOML"),
        ("rate = '\xff", "{path} cannot be read: it is not UTF-8"),
        ("a = " + "[" * 100_000, "{path} cannot be read: it is not TOML"),
        ("speed = 3.0", "speed in {path} is not a setting; there are calibrate, cells"),
        ("max-bytes = 3", "max-bytes in {path} is not a setting"),
        ("[serve]\nrate = 1", "serve in {path} is not a setting"),
        ("rate = -1.0", "rate in {path} is -1.0"),
        ("listen = 3", "listen in {path} is 3"),
        ("driver_option = {bits = 8}", "driver_option.bits in {path} is 8"),
        ("driver_option = 8", "driver_option in {path} is 8"),
        ("driver_option = [8]", "driver_option in {path}: 8 is not NAME=VALUE"),
    ],
)
def test_a_bad_file_is_named_with_the_key(tmp_path, text, message):
    path = tmp_path / "spu.toml"
    path.write_bytes(text.encode("latin-1"))
    result = CliRunner().invoke(app, ["serve", "--config", str(path)], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message.format(path=path) in result.output
    assert "--" not in result.output


@pytest.mark.parametrize("path", ["/tmp", "/proc/self/mem", "/nonexistent.toml"])
def test_a_configuration_that_is_no_file_is_named(path):
    result = CliRunner().invoke(app, ["serve", "--config", path], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert path in result.output


def test_all_problems_are_reported_at_once():
    result = CliRunner().invoke(app, ["serve", "--rate", "0", "--cells", "0"], env={"COLUMNS": "300"})
    assert "--rate" in result.output
    assert "--cells" in result.output


def test_drivers_are_listed():
    result = CliRunner().invoke(app, ["drivers"], env={"COLUMNS": "300"})
    assert result.exit_code == 0
    assert "emulator" in result.output
