"""Runs the checks, one after the other, on one driver."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from spu_link.errors import SpuError
from spu_server.testing.bench import Bench
from spu_server.testing.checks import CHECKS, Check, Skipped


@dataclass(frozen=True)
class Result:
    """Result of a check.

    Attributes:
        name: of the check.
        rule: what it checks, in words.
        problem: why it failed; empty if it did not.
        skipped: why it does not concern the driver; else empty.
        seconds: how long it took.
    """

    name: str
    rule: str
    problem: str
    skipped: str
    seconds: float


def rule_of(check: Check) -> str:
    """Return the subject of a check, in words."""
    return " ".join((check.__doc__ or "").split())


async def run_check(bench: Bench, check: Check) -> Result:
    """One check on an idle device."""
    begin = time.monotonic()
    problem = skipped = ""
    try:
        await bench.fresh()
        await check(bench)
    except Skipped as why:
        skipped = str(why)
    except AssertionError as error:
        problem = str(error) or repr(error)
    except SpuError as error:
        problem = f"{type(error).__name__}: {error.message}"
    return Result(check.__name__, rule_of(check), problem, skipped, time.monotonic() - begin)


async def run_all(bench: Bench) -> AsyncIterator[Result]:
    """Every check on an open bench."""
    for check in CHECKS:
        yield await run_check(bench, check)
