"""Options and the bench of ``pytest -p spu_server.testing.plugin --pyargs spu_server.testing --driver NAME``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from spu_server.drivers.base import DriverOptions
from spu_server.testing.bench import Bench


def pytest_addoption(parser: pytest.Parser) -> None:
    """The driver, its options and what counts as right."""
    parser.addoption("--driver", help="driver under test, by its entry point")
    parser.addoption("--driver-option", action="append", default=[], metavar="NAME=VALUE", help="one of its options")
    parser.addoption("--tolerance", type=float, default=1e-3, help="largest error that counts as right")


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.Runner]:
    """The event loop that the driver's calls run on."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest, loop: asyncio.Runner) -> Iterator[Bench]:
    """The driver, opened."""
    name = request.config.getoption("--driver")
    if not name:
        pytest.skip("no --driver is given")
    settings = dict(option.split("=", 1) for option in request.config.getoption("--driver-option"))
    one = Bench(name, DriverOptions(settings=settings), tolerance=request.config.getoption("--tolerance"))
    loop.run(one.open())
    yield one
    loop.run(one.close())
