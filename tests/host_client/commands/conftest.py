"""The command line in this process, and images that are there at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

import pytest
from typer.testing import CliRunner, Result

from host_client import cli
from host_client.tasks import mnist as mnist_task
from tests.host_client.commands.program import digits

Run: TypeAlias = Callable[..., Result]


@pytest.fixture
def tngd() -> Run:
    """Runs a command in a terminal of 160 columns."""
    return lambda *arguments: CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160", "TERM": "dumb"})


@pytest.fixture
def noise_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of MNIST, images that are all of MNIST's shape and mostly black."""
    made = digits()
    monkeypatch.setattr(mnist_task, "digits", lambda: made)


def words(text: str) -> str:
    """Return text without the frames and line breaks that the width of a terminal puts into it."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)
