"""The studies of noise and precision on a small task: every arm runs, and every file says what happened."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats
from torch import nn

from host_client.curvature import Capture
from host_client.curvature.kronecker.capture import KroneckerCapture
from host_client.embeddings import Block, Kronecker, SampleSpace
from spu_lab.experiments import embeddings, noise, precision
from spu_lab.studies.paired import compare
from spu_lab.studies.study import Results, Study, describe_differences
from spu_lab.studies.sweeps import Arm, Panel
from spu_lab.studies.verdicts import Verdict
from spu_lab.tasks.mnist import reference_network
from spu_lab.tasks.task import Examples, Task
from spu_link.errors import SpuError


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


def small(study: Study, seeds: Sequence[int], panels: Sequence[Panel] | None = None) -> Study:
    return replace(study, seeds=seeds, common={**study.common, "steps": 3}, panels=panels or study.panels)


def test_noise_is_compared_with_none_by_seed(halves: Task, tmp_path: Path) -> None:
    results = small(noise.STUDY, (0, 1)).run(tmp_path, halves, quiet(), address="inproc:")
    for panel in noise.STUDY.panels:
        tests = [results[arm.label].against(results[panel.reference.label]) for arm in (panel.reference, *panel.arms)]
        spread = [max(map(abs, test.differences)) for test in tests if test is not None]
        assert spread[0] == 0.0
        assert 0.0 < spread[1] < spread[-1]
    assert len(results) == 12
    ends = list(csv.DictReader((tmp_path / "noise.csv").read_text().splitlines()))
    curves = list(csv.DictReader((tmp_path / "noise-curves.csv").read_text().splitlines()))
    assert (len(ends), len(curves)) == (12 * 2, 12 * 2 * 3)
    assert float(ends[-1]["test_loss"]) == results[ends[-1]["device"]].finals("loss")[-1]
    assert (tmp_path / "noise.md").read_text().count("- κ₀ < 0.01 makes no difference, for ") == 2
    assert (tmp_path / "noise.png").stat().st_size > 10_000
    content = json.loads((tmp_path / "noise.json").read_text())
    assert content["seeds"] == [0, 1]
    assert content["versions"]["torch"]
    assert content["arms"][-1]["runs"][0]["settings"]["noise"] == 0.1
    assert set(content["panels"][0]["arms"]) == {arm.label for arm in noise.STUDY.panels[0].arms}


def test_precision_compares_devices_with_one_fault_each(halves: Task, tmp_path: Path) -> None:
    chosen = [replace(panel, arms=[panel.arms[0], panel.arms[-1]]) for panel in precision.STUDY.panels]
    chosen = [panel for panel in chosen if panel.varied.startswith(("bits of resistors", "mismatch"))]
    results = small(precision.STUDY, (0,), chosen).run(tmp_path, halves, quiet(), address="inproc:")
    ideal = results["ideal device"]
    change = {label: abs(result.against(ideal).mean) for label, result in results.items()}
    assert change["ideal device"] == 0.0
    assert 0.0 < change["resistors, 8"] < change["resistors, 3"]
    assert change["mismatch 0.1"] > 0.0
    report = results["resistors, 8"].runs[0].report
    assert report["uploads"] == report["readings"] == 3
    assert report["analog_seconds"] == pytest.approx(3 * 50e-6)
    assert report["upload_seconds"] > 0 < report["joules"]
    assert (tmp_path / "precision.png").stat().st_size > 10_000


def judge_differences(panels: Sequence[Panel], results: Results) -> list[Verdict]:
    """Give what differs, and no claim."""
    return [Verdict("nothing differs", describe_differences(panels[0], results), holds=False)]


def test_a_run_that_diverges_is_reported_and_left_out(halves: Task, tmp_path: Path) -> None:
    good, bad = Arm("good", 1.0, {"optimizer": "sgd"}, None), Arm("bad", 2.0, {"optimizer": "sgd", "lr": 1e30}, None)
    study = replace(small(noise.STUDY, (0, 1), [Panel("rate", good, [bad])]), judge=judge_differences)
    (tmp_path / "before.png").write_bytes(b"of the run before")
    (tmp_path / "noise.png").hardlink_to(tmp_path / "before.png")
    results = study.run(tmp_path, halves, quiet(), address="inproc:")
    assert results["bad"].finished == []
    assert results["bad"].against(results["good"]) is None
    assert "runs diverged at bad" in (tmp_path / "noise.md").read_text()
    assert "bad (2 of 2 diverged)" in (tmp_path / "noise.md").read_text()
    assert (tmp_path / "noise.png").stat().st_size > 10_000
    assert (tmp_path / "before.png").read_bytes() == b"of the run before"  # renamed into place, not written over


def test_what_is_done_stays_when_a_study_breaks_off(halves: Task, tmp_path: Path) -> None:
    arms = Arm("digital", 1.0, {"optimizer": "sgd"}, None), Arm("no device", 2.0, device={"driver": "no such driver"})
    with pytest.raises(SpuError, match="no such driver"):
        small(noise.STUDY, (0, 1), [Panel("device", arms[0], arms[1:])]).run(
            tmp_path, halves, quiet(), address="inproc:"
        )
    kept = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")]
    assert {(run["arguments"]["label"], run["arguments"]["settings"]["seed"]) for run in kept} <= {
        ("digital", 0),
        ("digital", 1),
    }


def test_every_embedding_comes_to_its_digital_equivalent(halves: Task, tmp_path: Path) -> None:
    panels = [panel for panel in embeddings.STUDY.panels if "preset" not in panel.varied]
    results = small(embeddings.STUDY, (0, 1), panels).run(tmp_path, halves, quiet(), address="inproc:")
    for panel in panels:
        soon, late = (results[panel.arms[k].label].against(results[panel.reference.label]) for k in (0, -1))
        assert max(map(abs, late.differences)) < 1e-5
        if panel.arms[0].settings["damping"] < 0.1:  # or 20 τ are long
            assert max(map(abs, soon.differences)) > 1e-4
    assert (tmp_path / "embeddings.md").read_text().count(" within 1%: holds. ") == len(panels)


@pytest.mark.parametrize(
    ("network", "cells"),
    [(embeddings.network, (2_698, 576, 1_450, 145)), (reference_network, (105_866, 576, 100_416, 1_569))],
)
def test_cells_needed_are_those_that_the_devices_of_the_study_have(
    network: Callable[[], nn.Module], cells: tuple[int, ...]
) -> None:
    model, criterion = network(), nn.CrossEntropyLoss()
    captures = Capture(model, criterion), KroneckerCapture(model, criterion)
    criterion(model(torch.randn(64, 1, 28, 28)), torch.randint(10, (64,))).backward()
    factor, kronecker = (capture.operator_of_gradients() for capture in captures)
    needed = [SampleSpace().cells(factor), Block().cells(factor), Kronecker().cells(kronecker)]
    assert (factor.parameters, *needed) == cells
    if network is embeddings.network:
        has = [panel.arms[0].device["cells"] for panel in embeddings.STUDY.panels]
        assert has == [cells[0], cells[1], 64, 8, 8, *cells[2:]]


def test_every_device_of_the_study_can_be_opened() -> None:
    from spu_server.drivers.analog import Analog
    from spu_server.drivers.base import DriverOptions

    for panel in precision.STUDY.panels:
        for arm in panel.arms:
            Analog(DriverOptions(settings=arm.device["driver_option"])).close()


def test_a_device_that_is_given_is_refused(tmp_path: Path) -> None:
    for study in (noise, precision):
        with pytest.raises(ValueError, match="leave out --spu"):
            study.run(tmp_path, "unix:/tmp/spu.sock", quiet())


def test_differences_by_seed_are_tested_as_textbooks_do() -> None:
    test = compare([0.9, 1.0, 1.1])
    assert test.mean == pytest.approx(1.0)
    assert (test.low, test.high) == pytest.approx((1.0 - 0.2484, 1.0 + 0.2484), abs=1e-4)  # 4.303 × 0.1 / √3
    assert test.p == pytest.approx(float(stats.ttest_1samp([0.9, 1.0, 1.1], 0.0).pvalue))
    same, alone = compare([0.0, 0.0]), compare([1.0])
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)
    assert math.isnan(alone.p)
    assert compare([]) is None


def test_four_of_five_differences_of_the_detectable_size_are_seen() -> None:
    draws = np.random.default_rng(0).normal(size=(4_000, 5))
    detectable = compare(list(draws[0])).detectable / (draws[0].std(ddof=1))  # in standard deviations
    seen_in = (stats.ttest_1samp(draws + detectable, 0.0, axis=1).pvalue < 0.05).mean()
    assert seen_in == pytest.approx(0.8, abs=0.03)
