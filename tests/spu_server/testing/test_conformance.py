"""The conformance suite: the drivers pass it, and each broken one fails it where it is broken.

The board's run, and that of the page's own driver, are in `tests/test_drivers_page.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from spu_server.clock import SteppedClock
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.event_log import Header, LogWriter
from spu_server.drivers.recording import RecordingPort
from spu_server.testing.bench import Bench
from spu_server.testing.checks import CHECKS, Check, can_be_closed_and_opened_again
from spu_server.testing.runner import run_all, run_check
from tests.plugins.install import distribution

BROKEN = {
    "name": "states_its_capabilities",
    "reads nothing": "refuses_to_read_or_commit_without_a_program",
    "starts at zero": "starts_where_it_should",
    "too fast": "follows_the_law_in_time",
    "wrong time": "reads_at_the_times_it_says",
    "wrong dtype": "gives_readings_in_the_dtype_of_the_drive",
    "forgets damping": "solves_with_every_kind_of_operator_it_states",
    "accepts everything": "refuses_the_operators_it_does_not_state",
    "stages into the running program": "goes_on_under_the_old_program_until_the_commit",
    "averages nothing": "averages_over_windows",
    "closes no window": "averages_over_windows",
    "slow to halt": "halts_at_once_and_discharges_the_cells",
    "halts charged": "halts_at_once_and_discharges_the_cells",
    "clock": "has_a_clock_that_can_be_believed",
    "self-test": "finds_nothing_wrong_with_itself",
    "too noisy": "is_at_rest_where_and_as_widely_as_it_should_be",
    "slow with noise": "relaxes_with_the_time_constant_it_should_have",
    "keeps the line": "can_be_closed_and_opened_again",
}
"""Broken parts by name, and the first rule that each breaks."""


async def failures(bench: Bench) -> list[str]:
    return [result.name for result in [result async for result in run_all(bench)] if result.problem]


@pytest.mark.parametrize("name", ["emulator", "analog"])
async def test_the_drivers_in_software_pass(name: str) -> None:
    bench = Bench(name, DriverOptions())
    await bench.open()
    assert await failures(bench) == []
    await bench.close()


class RecordedBench(Bench):
    """A bench that keeps a log of what is done with a driver since it was opened last.

    Attributes:
        log: its folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("emulator", DriverOptions(clock="stepped"))
        self._folder = folder
        self._openings = 0

    async def open(self) -> None:
        await super().open()
        self._driver, self._openings = self.port, self._openings + 1
        self.log = self._folder / str(self._openings)
        clock = SteppedClock()
        header = Header.of(self.name, self.options, self.capabilities, clock, 1)
        self.port = RecordingPort(self._driver, LogWriter(self.log, header), clock)  # type: ignore[assignment]

    async def close(self) -> None:
        recording, self.port = self.port, self._driver
        await super().close()
        await recording.close()


async def verdicts(bench: Bench, checks: list[Check]) -> list[tuple[str, str, str]]:
    await bench.open()
    results = [await run_check(bench, check) for check in checks]
    await bench.close()
    return [(result.name, result.problem, result.skipped) for result in results]


async def test_a_played_run_of_every_rule_passes_every_rule(tmp_path: Path) -> None:
    """A log begins anew when its driver is opened again, so the rule that opens it again comes first."""
    first = can_be_closed_and_opened_again
    checks = [first, *(check for check in CHECKS if check is not first)]
    recorded = RecordedBench(tmp_path)
    expected = await verdicts(recorded, checks)
    options = DriverOptions(clock="stepped", settings={"log": str(recorded.log)})
    assert await verdicts(Bench("replay", options), checks) == expected
    assert [problem for _, problem, _ in expected if problem] == []
    assert [name for name, _, skipped in expected if skipped] == ["has_a_clock_that_can_be_believed"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], None]:
    """Says which rule the driver breaks."""
    how = tmp_path / "how"
    how.write_text("")

    def write(broken: str) -> None:
        how.write_text(broken)
        how.with_name("how.lock").unlink(missing_ok=True)

    return write


@pytest.fixture
async def nonconforming(
    write: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Bench]:
    """A driver that breaks the rule that is written for it."""
    plugins = distribution(
        tmp_path / "plugins", "bad-drivers", {"nonconforming": "tests.plugins.nonconforming:Nonconforming"}
    )
    monkeypatch.syspath_prepend(str(plugins))  # which the driver's process inherits
    bench = Bench("nonconforming", DriverOptions(settings={"file": str(tmp_path / "how")}))
    await bench.open()
    yield bench
    await bench.close()


async def test_every_broken_driver_fails_where_it_is_broken(nonconforming: Bench, write: Callable[[str], None]) -> None:
    by_name = {check.__name__: check for check in CHECKS}
    for broken, rule in BROKEN.items():
        write(broken)
        if broken in ("name", "accepts everything"):
            await nonconforming.reopen()
        assert (await run_check(nonconforming, by_name[rule])).problem, f"{broken!r} breaks {rule} unseen"
        other = by_name["finds_nothing_wrong_with_itself" if broken != "self-test" else "starts_where_it_should"]
        if broken not in ("slow to halt", "keeps the line"):
            assert not (await run_check(nonconforming, other)).problem, f"{broken!r} breaks what it should not"
        write("")
        if broken in ("name", "accepts everything", "keeps the line"):
            await nonconforming.reopen()
    assert set(BROKEN.values()) == set(by_name)
