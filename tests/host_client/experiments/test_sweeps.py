"""The studies of noise and precision on a small task: every arm runs, and every file says what happened."""

from __future__ import annotations

import csv
import json
import math
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from host_client.experiments import noise, precision
from host_client.experiments.sweeps import Arm, paired_p
from host_client.tasks.task import Examples, Task


@pytest.fixture(scope="module")
def halves() -> Task:
    """Vectors of 12 numbers, the brighter third of which is the class."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (300,), generator=generator)
    inputs = 0.3 * torch.randn(300, 12, generator=generator)
    inputs.view(300, 3, 4)[torch.arange(300), targets] += 1.0
    parts = [Examples(inputs[k : k + 100], targets[k : k + 100]) for k in (0, 100, 200)]
    return Task(
        name="halves",
        outputs=3,
        network=lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)),
        criterion=nn.CrossEntropyLoss(),
        prepare=lambda x: x,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
    )


def quiet() -> Console:
    return Console(file=StringIO())


def test_noise_is_compared_with_none_by_seed(halves: Task, tmp_path: Path) -> None:
    results = noise.study(tmp_path, halves, quiet(), seeds=(0, 1), epochs=1, steps=3)
    assert [r.arm.value for r in results] == list(noise.NOISES)
    spread = [max(map(abs, r.differences(results[0]))) for r in results]
    assert spread[0] == 0.0
    assert 0.0 < spread[1] < spread[-1]
    rows = list(csv.DictReader((tmp_path / "noise.csv").read_text().splitlines()))
    assert len(rows) == len(results) * 2 * 3
    assert "κ₀ < 0.01" in (tmp_path / "noise.md").read_text()
    assert (tmp_path / "noise.png").stat().st_size > 10_000
    content = json.loads((tmp_path / "noise.json").read_text())
    assert content["arms"][-1]["differences"] == results[-1].differences(results[0])


def test_precision_compares_devices_with_one_fault_each(halves: Task, tmp_path: Path) -> None:
    chosen = [a for a in precision.arms() if a.varied == precision.BITS and a.value in (4, 16, math.inf)]
    chosen += [a for a in precision.arms() if a.varied == precision.MISMATCH][-1:]
    results = precision.study(tmp_path, halves, quiet(), seeds=(0,), epochs=1, steps=3, devices=chosen)
    change = {r.arm.value: abs(r.differences(results[0])[0]) for r in results}
    assert change[math.inf] == 0.0
    assert 0.0 < change[16] < change[4]
    assert change[0.1] > 0.0
    report = results[0].runs[0].report
    assert report["uploads"] == report["readings"] == 3
    assert report["analog_seconds"] == pytest.approx(3 * 50e-6)
    assert report["upload_seconds"] > 0 < report["joules"]
    assert (tmp_path / "precision.png").stat().st_size > 10_000


def test_every_device_of_the_study_can_be_opened() -> None:
    from spu_server.drivers.analog import Analog
    from spu_server.drivers.base import DriverOptions

    for arm in precision.arms():
        Analog(DriverOptions(settings=arm.board)).close()


def test_a_device_that_is_given_is_refused(tmp_path: Path) -> None:
    for study in (noise, precision):
        with pytest.raises(ValueError, match="leave out --spu"):
            study.run(tmp_path, "unix:/tmp/spu.sock", quiet())


def test_the_reference_has_no_chance_of_being_different() -> None:
    assert math.isnan(paired_p([0.0, 0.0]))
    assert paired_p([1.0, 1.1, 0.9]) < 0.01
    assert Arm("bits", 8).label == "bits 8"
