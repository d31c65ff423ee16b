"""The same examples and the same random numbers in every run; fixtures: real daemons in separate processes."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from spu_link.tuning import tune_process

# Before torch is imported. There are as many test processes as processors, and daemons besides: more threads in each
# only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
tune_process()

import torch  # noqa: E402

from tests import profiles  # noqa: E402
from tests.daemon import Daemon  # noqa: E402

settings.load_profile("repeatable")  # unless the command line names another


def pytest_sessionstart() -> None:
    if settings().derandomize:
        profiles.without_constants_of_the_source()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files with long tests come first: one that begins last leaves a processor without work.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Take the tests and all modules out of garbage collection: to look through them takes 0.3 s each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    torch.manual_seed(0)  # before any fixture, and whatever ran before in this process


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show how the random trials of the curvature ended, in all processes; `record_property` brings them here."""
    counts: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", None) == "call":
            for counted in (value for name, value in report.user_properties if name == "trials"):
                counts.update(counted)
    if counts:
        terminalreporter.section(f"{counts.total()} random trials of the curvature")
        for kind, count in counts.most_common():
            terminalreporter.write_line(f"{count:6}  {kind}")


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons: ``daemon("--clock", "stepped", seed=3)``; stopped at the end, and must have ended well."""
    started: list[Daemon] = []

    def start(*options: str) -> Daemon:
        # The path of a Unix socket has at most 107 characters, so it lies as high up as possible.
        started.append(Daemon(tmp_path_factory.mktemp("d") / "s", *options))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def noise_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of MNIST, the images of `digits`."""
    from tests.command_line import digits  # only here, since it imports all commands

    made = digits()
    monkeypatch.setattr("spu_lab.tasks.mnist.digits", lambda: made)


@pytest.fixture(scope="session")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One stepped daemon for all tests of this process that leave it usable."""
    with Daemon(tmp_path_factory.mktemp("d") / "s", "--clock", "stepped", "--seed", "0") as one:
        yield one


@pytest.fixture(scope="session")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One free-running daemon, at 1000 τ a second, for all tests of this process that leave it usable."""
    with Daemon(tmp_path_factory.mktemp("d") / "s", "--clock", "free", "--rate", "1000") as one:
        yield one
