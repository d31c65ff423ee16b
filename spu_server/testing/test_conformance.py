"""The checks as tests of pytest."""

from __future__ import annotations

import asyncio

import pytest

from spu_server.testing.bench import Bench
from spu_server.testing.checks import CHECKS, Check
from spu_server.testing.runner import run_check


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_driver(check: Check, bench: Bench, loop: asyncio.Runner) -> None:
    """One rule."""
    result = loop.run(run_check(bench, check))
    if result.skipped:
        pytest.skip(result.skipped)
    assert not result.problem, f"{result.rule}\n{result.problem}"
