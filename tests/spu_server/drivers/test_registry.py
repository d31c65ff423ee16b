"""Plug-ins: the named one is loaded or says why not, and whose it is; others cannot hurt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spu_server.cli import app
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.registry import DriverUnusable, load_driver, open_driver
from tests.plugins.install import distribution

MODULE = """
from spu_server.drivers.base import Driver
from spu_server.drivers.emulator import Emulator

class Newer(Emulator):
    interface = 99

class Half(Driver):
    pass

nothing = 7
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Several distributions whose drivers are broken, next to the good ones."""
    (tmp_path / "acme_module.py").write_text(MODULE)
    (tmp_path / "acme_crash.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    (tmp_path / "acme_error.py").write_text("raise RuntimeError('no license')\n")
    drivers = {
        "missing": "acme_nowhere:Board",
        "error": "acme_error:Board",
        "crash": "acme_crash:Board",
        "newer": "acme_module:Newer",
        "half": "acme_module:Half",
        "nothing": "acme_module:nothing",
        "twice": "acme_module:Newer",
    }
    distribution(tmp_path, "acme-boards", drivers)
    distribution(tmp_path, "other-boards", {"twice": "acme_module:Newer"})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "acme_nowhere"),
        ("error", "no license"),
        ("newer", "version 99"),
        ("half", "lacks .*commit.*stage"),
        ("nothing", "no subclass"),
        ("twice", "other-boards 1.0; uninstall"),
    ],
)
def test_a_broken_driver_that_is_named_says_what_is_wrong_and_whose_it_is(plugins, name, words):
    with pytest.raises(DriverUnusable, match=words) as caught:
        load_driver(name)
    assert "acme-boards 1.0" in str(caught.value)


def test_a_good_driver_does_not_care_about_broken_ones_next_to_it(plugins):
    open_driver("emulator", DriverOptions()).close()


def test_an_unknown_name_is_answered_with_those_there_are(plugins):
    with pytest.raises(LookupError, match=r"'abacus'.*board.*emulator"):
        load_driver("abacus")


def test_what_a_driver_discovers_is_shown_as_the_commands_that_serve_it(plugins):
    def discover(name: str) -> str:
        return CliRunner().invoke(app, ["discover", name]).output

    assert discover("emulator") == "spu-server serve --driver emulator\n"
    assert "spu-server serve --driver analog --driver-option preset=eight-cell\n" in discover("analog")
    assert discover("replay") == "replay: finds no device\n"
    assert "acme-boards 1.0" in discover("error")


def test_the_list_of_drivers_shows_broken_ones_with_the_reason(plugins):
    done = subprocess.run(
        [sys.executable, "-c", "from spu_server.drivers.registry import problems; print(problems(['error', 'crash']))"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "no license" in done.stdout, done.stderr
    assert "signal 11" in done.stdout
