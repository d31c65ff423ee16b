"""``tngd reproduce``: all experiments one after another, and the message after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from spu_lab import catalogue
from spu_lab.result_folder import write_json
from tests.command_line import tngd, words


class Experiment:
    """An experiment that keeps a run, and finishes unless an error is set."""

    def __init__(self, name: str) -> None:
        self.name, self.started = name, 0
        self.error: BaseException | None = None

    def run(self, out: Path, spu: str | None, console: Console, *, quick: bool = False) -> None:
        self.started += 1
        write_json(out / "runs" / "first.json", {})
        if self.error is not None:
            raise self.error
        write_json(out / f"{self.name}.json", {"status": "finished"})


Experiments = dict[str, Experiment]


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiments:
    """Two experiments in the place of all, run in an empty folder."""
    fakes = {name: Experiment(name) for name in ("noise", "precision")}
    find: Callable[[str, str], Experiment] = lambda package, name: fakes[name]  # noqa: E731
    monkeypatch.setattr(catalogue, "names", lambda package: list(fakes))
    monkeypatch.setattr(catalogue, "find", find)
    monkeypatch.chdir(tmp_path)
    return fakes


def test_one_that_fails_does_not_keep_the_others_from_running_and_is_resumed(experiments: Experiments) -> None:
    experiments["noise"].error = ValueError("Invalid damping: -1; it must be at least 0")
    first = tngd("reproduce", "all")
    assert first.exit_code == 1
    assert "failed: noise; the messages are above" in words(first.stderr)
    assert Path("results", "precision", "precision.json").exists()

    experiments["noise"].error = None
    second = tngd("reproduce", "all", "--resume")
    assert second.exit_code == 0, second.output
    assert "precision has finished, see results/precision" in words(second.stderr)
    assert [experiment.started for experiment in experiments.values()] == [2, 1]


@pytest.mark.parametrize("name", ["noise", "all"])
def test_after_an_interruption_the_message_names_the_default_folder(name: str, experiments: Experiments) -> None:
    experiments["noise"].error = KeyboardInterrupt()
    result = tngd("reproduce", name)
    assert result.exit_code == 130
    left = "results/noise holds what there is of the run: noise.json, runs/; go on with it with --resume"
    assert words(result.stderr).count(left) == 1
    assert experiments["precision"].started == 0
