"""`tngd` in this process, and images that are there at once in place of MNIST."""

from __future__ import annotations

import re

import numpy as np
from typer.testing import CliRunner, Result

from spu_lab import cli


def tngd(*arguments: str) -> Result:
    """Run a command in a terminal of 160 columns."""
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160", "TERM": "dumb"})


def words(text: str) -> str:
    """Return text without the frames and line breaks that the width of a terminal puts into it."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of MNIST's shape: noise at the beginning of each part, and black elsewhere."""
    pixels = np.zeros((70_000, 28, 28), dtype=np.uint8)
    for part in (slice(0, 300), slice(60_000, 60_300)):
        pixels[part] = np.random.default_rng(0).integers(0, 256, (300, 28, 28))
    return pixels, np.arange(70_000, dtype=np.uint8) % 10
