"""A run that was interrupted goes on, and ends where one without a break ends."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from host_client import connect
from host_client.record import load
from spu_lab.result_folder import CheckpointUnusable
from spu_lab.tasks.task import Examples, Task
from spu_lab.training import checkpoint, runner
from spu_lab.training.loop import Run
from spu_lab.training.runner import run_in
from spu_lab.training.settings import Settings
from spu_link.errors import DeviceUnavailable
from tests.daemon import Daemon

OPTIONS = {"lr": 0.1}


@pytest.fixture(scope="module")
def points() -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator)
    examples = Examples(inputs, inputs[:, :3].argmax(1))
    network = lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))  # noqa: E731
    return Task("points", 3, network, nn.CrossEntropyLoss(), lambda x: x, examples, examples, examples)


def after(steps: int) -> Callable[[], bool]:
    """Return what asks a run to stop after so many iterations."""
    asked = itertools.count(1)
    return lambda: next(asked) >= steps


def made(task: Task, settings: Settings, folder: Path, address: str | None, **how: Any) -> Run:
    def run(spu: Any) -> Run:
        quiet = Console(file=StringIO())
        return run_in(folder, task, settings, spu, label="run", console=quiet, options=OPTIONS, **how)

    if address is None:
        return run(None)
    own = {"clock": "stepped", "seed": 7} if address == "inproc:" else {}
    with connect(address, **own) as spu:
        return run(spu)


def outcome(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a run, without the times of this machine."""
    rows = list(csv.DictReader((folder / "steps.csv").read_text().splitlines()))
    return [
        {name: row[name] for name in ("step", "epoch", "loss", "accuracy", "uploaded_bytes", "device_time_tau")}
        for row in rows
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "tngd", "noise": 1e-3, "momentum": 0.5},
        {"optimizer": "tngd", "curvature": "mc", "curvature_every": 3},
        {"optimizer": "ngd-woodbury", "curvature": "mc"},
        {"optimizer": "adam"},
    ],
    ids=["tngd, noisy", "tngd, drawn labels", "woodbury, drawn labels", "adam"],
)
def test_a_resumed_run_equals_one_without_a_break_bit_for_bit(
    points: Task, settings: dict[str, Any], tmp_path: Path
) -> None:
    how = Settings.model_validate({"batch_size": 20, "steps": 8, "lr": 0.1, "analog_time": 5.0, "seed": 3, **settings})
    address = "inproc:" if how.optimizer == "tngd" else None  # a new device each time
    whole = made(points, how, tmp_path / "a", address)
    part = made(points, how, tmp_path / "b", address, stopped=after(4))
    assert len(part.steps) == 4
    assert json.loads((tmp_path / "b" / "run.json").read_text())["status"] == "interrupted"
    resumed = made(points, how, tmp_path / "b", address, resume=checkpoint.load(tmp_path / "b"))
    assert outcome(tmp_path / "b") == outcome(tmp_path / "a")
    assert resumed.evaluations == whole.evaluations
    content = json.loads((tmp_path / "b" / "run.json").read_text())
    assert content["status"] == "finished"
    results, expected = (
        json.loads((tmp_path / name / "run.json").read_text())["runs"]["run"]["results"] for name in ("b", "a")
    )
    assert results["iterations"] == 8
    for name in ("modelled_device_seconds", "modelled_device_joules"):
        assert results[name] == pytest.approx(expected[name])
    assert (results["modelled_device_seconds"] > 0.0) == (how.optimizer == "tngd")
    times = [step.time for step in resumed.steps]
    assert times == sorted(times)
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {"steps.csv", "run.json", "run.png", "events.jsonl", "events-1.jsonl"}
    record = load(tmp_path / "b")
    assert record.header["resumed_after"] == 4
    assert {event.step for event in record.events if hasattr(event, "source")} == {5, 6, 7, 8}


def test_delays_and_counts_of_all_parts_of_a_run_are_reported(points: Task, tmp_path: Path) -> None:
    settings = Settings(batch_size=20, steps=4, analog_time=5.0, delay=2.0)
    whole = made(points, settings, tmp_path / "a", "inproc:")
    made(points, settings, tmp_path / "b", "inproc:", stopped=after(2))
    # A single step has no delay of its own.
    made(points, settings, tmp_path / "b", "inproc:", stopped=after(1), resume=checkpoint.load(tmp_path / "b"))
    resumed = made(points, settings, tmp_path / "b", "inproc:", resume=checkpoint.load(tmp_path / "b"))
    assert resumed.report == pytest.approx(whole.report)
    assert resumed.delay == whole.delay == pytest.approx(2.0)


def test_rows_after_the_checkpoint_are_reproduced(
    points: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(optimizer="adam", batch_size=20, steps=8)
    made(points, settings, tmp_path / "a", None)
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)

    def killed(stopped: Callable[[], bool]) -> Callable[[], bool]:
        def ask() -> bool:
            if stopped():
                raise SystemExit  # as a second Ctrl-C would, in the middle of things
            return False

        return ask

    with pytest.raises(SystemExit):
        made(points, settings, tmp_path / "b", None, stopped=killed(after(5)))
    assert len(outcome(tmp_path / "b")) == 5
    saved = checkpoint.load(tmp_path / "b")
    assert saved["done"] == 4
    made(points, settings, tmp_path / "b", None, resume=saved)
    assert outcome(tmp_path / "b") == outcome(tmp_path / "a")


def test_a_run_that_lost_its_device_goes_on_with_another(
    points: Task, daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    first, second = daemon("--clock", "stepped"), daemon("--clock", "stepped")
    settings = Settings(batch_size=20, steps=6, analog_time=5.0)
    step = after(3)

    def lose_it() -> bool:
        if step():
            first.close()
        return False

    with pytest.raises(DeviceUnavailable):
        made(points, settings, tmp_path, first.address, stopped=lose_it)
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["status"] == "failed"
    assert first.address in content["reason"]
    resumed = made(points, settings, tmp_path, second.address, resume=checkpoint.load(tmp_path))
    assert [step.step for step in resumed.steps] == [1, 2, 3, 4, 5, 6]
    assert resumed.report == {}  # the counts of the first device are lost with it


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x80\x02N."], ids=["empty", "torn", "another pickle"])
def test_a_damaged_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(CheckpointUnusable, match=r"checkpoint\.pt cannot be read .* start anew with --overwrite"):
        checkpoint.load(tmp_path)


def test_an_option_of_an_earlier_version_has_its_present_name(points: Task, tmp_path: Path) -> None:
    made(points, Settings(optimizer="adam", batch_size=20, steps=8), tmp_path, None, stopped=after(4))
    path = tmp_path / "checkpoint.pt"
    torch.save({**torch.load(path), "options": {"patience": 400.0, "lr": 0.1}}, path)
    assert checkpoint.load(tmp_path)["options"] == {"timeout": 400.0, "lr": 0.1}


def test_rows_that_are_lost_or_damaged_are_refused(points: Task, tmp_path: Path) -> None:
    settings = Settings(optimizer="adam", batch_size=20, steps=8)
    made(points, settings, tmp_path, None, stopped=after(4))
    saved, rows = checkpoint.load(tmp_path), (tmp_path / "steps.csv").read_text()
    for damaged in (rows[: len(rows) // 2], rows.replace("accuracy", "acc"), rows.replace("0.", "x", 1), ""):
        (tmp_path / "steps.csv").write_text(damaged)
        with pytest.raises(CheckpointUnusable, match=r"steps\.csv .* start anew with --overwrite"):
            made(points, settings, tmp_path, None, resume=saved)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
