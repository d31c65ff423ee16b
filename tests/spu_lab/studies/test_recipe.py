"""The recipe for η, λ and t: what it chooses, how it is judged, and the miniature."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from host_client import connect
from spu_lab.experiments import recipe as experiment
from spu_lab.experiments.recipe import RECIPE, Trained, find_best, judge
from spu_lab.studies.recipe import apply_recipe, largest_eigenvalue
from spu_lab.studies.small_problems import KINDS, Small, build
from spu_lab.studies.study import DeviceNotTaken


def test_the_largest_eigenvalue_is_that_of_the_curvature() -> None:
    # One weight and the mean square of w x − y: F = 2 mean(x²) = 2 · (1 + 4)/2.
    model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0]])
    criterion = nn.MSELoss()
    batches = iter([None])
    problem = Small(model, criterion, batches, lambda _: criterion(model(x), torch.zeros(2, 1)), lambda: 0.0)
    assert largest_eigenvalue(problem) == pytest.approx(5.0)


@pytest.mark.filterwarnings("ignore::host_client.curvature.CurvatureFallback")
def test_it_chooses_by_the_kind_of_problem() -> None:
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        spirals, poisson = (apply_recipe(KINDS[name], 0, session) for name in ("spirals", "poisson"))
    assert spirals.options() == {"lr": 1.0, "trust_region": 0.01}
    assert spirals.damping == pytest.approx(0.01 * largest_eigenvalue(build(KINDS["spirals"], 0)))
    assert "line_search" in poisson.options()
    assert poisson.damping == pytest.approx(1e-7 * largest_eigenvalue(build(KINDS["poisson"], 0)))


def test_it_is_compared_with_the_best_median_of_the_grid() -> None:
    def trained(*scores: float) -> list[Trained]:
        return [Trained(0.1, 0.1, score) for score in scores]

    by_point = {RECIPE: trained(1.0, 2.3, 9.0), "a": trained(0.1, 3.0, 9.0), "b": trained(2.0, 2.0, math.inf)}
    assert find_best(by_point) == "b"
    verdict = judge("regression", by_point)
    assert verdict.holds
    assert verdict.outcome == "2.3 (1, 2.3, 9 by seed), and 2 with b: a ratio of 1.15."
    assert not judge("regression", {**by_point, RECIPE: trained(2.0, 2.5, 3.0)}).holds
    lost = trained(math.inf, math.inf, 1.0)
    assert not judge("regression", {RECIPE: lost, "a": lost}).holds


def test_the_miniature_writes_every_file(tmp_path: Path) -> None:
    plan = replace(experiment.MINIATURE, dampings={"poisson": (1e-3,)}, fraction=0.02)
    experiment.reproduce(plan, tmp_path, "inproc:", Console(file=StringIO(), width=120))
    rows = list(csv.DictReader((tmp_path / "recipe.csv").read_text().splitlines()))
    assert [row["settings"] for row in rows] == ["recipe", "λ 0.001, η 1"]
    content = json.loads((tmp_path / "recipe.json").read_text())
    assert content["status"] == "finished"
    assert content["verdicts"][0]["sentence"] in (tmp_path / "recipe.md").read_text()
    assert (tmp_path / "recipe.png").stat().st_size > 10_000


def test_a_device_that_is_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotTaken, match="recipe makes devices of its own"):
        experiment.run(tmp_path, "unix:/tmp/spu.sock", Console(file=StringIO()))
