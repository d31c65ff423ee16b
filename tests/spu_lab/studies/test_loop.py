"""The experiment on the loop: what it measures in a record, and a short run through a free-running daemon."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from spu_lab.experiments import loop
from spu_lab.experiments.loop import BLOCKING, FREE, WARMUP, Measured
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.tasks.task import Examples, Task
from spu_lab.timeline import lay_out
from tests.spu_lab.timeline.pipeline import Emulated


def measured(age: int, **options: float) -> Measured:
    record = Emulated(steps=30, age=age, rate=2000.0, computing=0.001, **options).record()
    return Measured.of(lay_out(record))


def test_times_are_those_of_the_record() -> None:
    free, blocking = measured(1), measured(0)
    assert free.differentiation == pytest.approx(0.03)
    assert blocking.differentiation == pytest.approx(0.03)
    # 30 ms of differentiation, 5 of upload, 25 of analog time, 1 of computing, 1 to arrive and 1 of updating
    assert blocking.between_differentiations == pytest.approx(0.063)
    assert blocking.between_measurements == pytest.approx(0.063)
    assert blocking.turns.evolution == 0.0
    assert free.between_differentiations < blocking.between_differentiations
    assert free.turns.evolution == 1.0
    assert free.turns.ages == (1, 1)
    assert free.nearest > 0.0


def test_verdicts_follow_the_numbers() -> None:
    free, blocking = measured(1), measured(0)
    assert [verdict.holds for verdict in loop.judge({FREE: free, BLOCKING: blocking}, 1e-3)] == [True] * 4
    assert [verdict.holds for verdict in loop.judge({FREE: blocking, BLOCKING: free}, 1.0)] == [
        False,
        None,
        True,
        False,
    ]


def test_a_short_run_gives_all_files(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(96, 6, generator=generator), torch.arange(96) % 3
    parts = [Examples(inputs[k : k + 32], targets[k : k + 32]) for k in (0, 32, 64)]
    network = lambda: nn.Sequential(nn.Linear(6, 3))  # noqa: E731
    task = Task("blobs", 3, network, nn.CrossEntropyLoss(), lambda x: x, *parts)
    loop.reproduce(task, WARMUP + 4, tmp_path, Console(file=StringIO()))
    assert {path.name for path in tmp_path.iterdir()} == {f"loop.{kind}" for kind in ("csv", "json", "md", "png")}
    content = json.loads((tmp_path / "loop.json").read_text())
    assert content["status"] == "finished"
    assert content["settings"]["device"]["rate_tau_per_s"] == loop.RATE
    assert content["loops"][FREE]["turns"]["ages"] == [1, 1]
    assert content["loops"][BLOCKING]["turns"]["ages"] == [0, 0]
    assert content["loops"][BLOCKING]["turns"]["evolution"] == 0.0
    assert all(verdict["sentence"] in (tmp_path / "loop.md").read_text() for verdict in content["verdicts"])
    rows = list(csv.DictReader((tmp_path / "loop.csv").read_text().splitlines()))
    differentiated = [row for row in rows if (row["loop"], row["what"]) == (FREE, "differentiation")]
    assert [int(row["number"]) for row in differentiated] == list(range(1, WARMUP + 5))


def test_a_device_that_is_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotTaken, match="leave out --spu"):
        loop.run(tmp_path, "inproc:", Console(file=StringIO()))
