"""The experiment on MNIST: its search, methods, counts, verdicts and files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from rich.console import Console
from torch import nn

from host_client import connect
from spu_lab.experiments.mnist import MINIATURE, reproduce, run
from spu_lab.studies.classification import ClassifierRun, Evaluated, even_steps, geometric_steps, train_classifier
from spu_lab.studies.classifier_methods import METHODS, PAPERS, LinearDecay, Method, make_classifier_optimizer
from spu_lab.studies.contest import Contest, Entrant
from spu_lab.studies.contest_runs import score
from spu_lab.studies.contest_verdict import judge_equal_time, judge_paper, judge_steps, judge_time
from spu_lab.studies.search import best_of, search
from spu_lab.studies.step_cost import StepCost, average_step, measure_step_cost
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.tasks.mnist import standardised
from spu_lab.tasks.task import Examples, Task

BY_LABEL = {method.label: method for method in METHODS}


def quiet() -> Console:
    return Console(file=StringIO())


def make_thirds() -> Callable[[int, bool], Task]:
    """Return a maker of a task: vectors of 12 numbers, the brightest third of which is the class."""

    def load(images: int, standard: bool) -> Task:
        generator = torch.Generator().manual_seed(0)
        targets = torch.randint(3, (450,), generator=generator)
        inputs = 0.3 * torch.randn(450, 12, generator=generator)
        inputs.view(450, 3, 4)[torch.arange(450), targets] += 1.0
        parts = [Examples(inputs[k : k + 150], targets[k : k + 150]) for k in (0, 150, 300)]
        return Task(
            name="thirds",
            outputs=3,
            network=lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)),
            criterion=nn.CrossEntropyLoss(),
            prepare=lambda x: x,
            train=parts[0],
            validation=parts[1],
            test=parts[2],
        )

    return load


def a_run(accuracies: Mapping[int, float], *, seconds: float = 1.0, loss: float = 1.0) -> ClassifierRun:
    """Return a run whose steps take so many seconds."""
    steps = max(accuracies)
    evaluations = [Evaluated(step, accuracy, step * seconds) for step, accuracy in accuracies.items()]
    return ClassifierRun([loss] * steps, evaluations, [seconds] * steps, 0.0, None)


def an_entrant(label: str, *runs: ClassifierRun, cost: StepCost | None = None) -> Entrant:
    return Entrant(label, BY_LABEL[label], {"lr": 0.1}, cost or StepCost(1.0, 0.0, 0.0, 0.0), runs)


def test_every_method_learns_with_its_first_trial_and_a_learning_rate_that_falls_to_zero() -> None:
    task = make_thirds()(150, True)
    for method in METHODS:
        model = task.build(0)
        with connect("inproc:", clock="stepped") as spu, spu.session() as session:
            values = method.first
            optimizer = make_classifier_optimizer(
                method, values, model, task.criterion, session=session, decay_steps=40
            )
            places = {"batch_size": 50, "seed": 0, "steps": 40, "evaluate_at": [1, 40]}
            result = train_classifier(task, model, optimizer, split="test", **places)  # type: ignore[arg-type]
        assert result.diverged is None
        assert len(result.seconds) == 40
        assert sum(result.losses[-3:]) < sum(result.losses[:3]), method.label
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=values["lr"] / 40 + 1e-12)


def test_a_run_that_diverges_ends_and_has_the_worst_score() -> None:
    task = make_thirds()(150, True)
    model = task.build(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
    places = {"batch_size": 50, "seed": 0, "steps": 40, "evaluate_at": [1, 40]}
    result = train_classifier(task, model, optimizer, split="test", **places)  # type: ignore[arg-type]
    assert result.diverged is not None
    assert "loss" in result.diverged
    assert len(result.losses) < 40
    kept = TypeAdapter(ClassifierRun)
    assert kept.validate_python(kept.dump_python(result, mode="json")) == result
    assert (result.accuracy, score(result)) == (0.0, 0.0)


def test_the_score_is_the_mean_logarithm_of_the_errors() -> None:
    assert score(a_run({1: 0.9, 2: 0.99})) == pytest.approx(-1.5)


def test_schedules_and_places() -> None:
    assert [LinearDecay(2.0, 4)(step) for step in (0, 1, 4, 9)] == [2.0, 1.5, 0.0, 0.0]
    assert even_steps(60, 4) == [15, 30, 45, 60]
    assert even_steps(2, 4) == [1, 2]
    steps = geometric_steps(100)
    assert steps[:11] == [*range(1, 12)]
    assert steps[-1] == 100
    assert all(b <= max(a + 1, 1.1 * a) for a, b in pairwise(steps))


def test_a_search_begins_with_the_first_values_gives_each_method_as_many_trials_and_is_reproduced() -> None:
    methods = {
        "narrow": Method("SGD", "sgd", {"lr": (1e-3, 1.0)}, {"lr": 0.5}),
        "wide": Method("TNGD", "tngd", {"lr": (1e-3, 1.0), "spring": (0.5, 0.9)}, {"lr": 0.5, "spring": 0.8}),
    }
    names: list[str] = []

    def evaluate(trials: Mapping[str, tuple[str, Mapping[str, float]]]) -> dict[str, float]:
        names.extend(trials)
        return {name: abs(math.log10(values["lr"]) + 1.0) for name, (_, values) in trials.items()}

    done = search(methods, evaluate, rounds=3, trials=4, seed=0)
    assert len(names) == len(set(names)) == 24
    assert [len(trials) for trials in done.values()] == [12, 12]
    assert [dict(trials[0].values) for trials in done.values()] == [method.first for method in methods.values()]
    assert all(1e-3 <= trial.values["lr"] <= 1.0 for trials in done.values() for trial in trials)
    assert best_of(done["narrow"]).score < 0.3
    assert search(methods, evaluate, rounds=3, trials=4, seed=0) == done


def test_the_cost_of_a_step_has_the_papers_upload_with_j_multiplied_out_and_that_of_factors() -> None:
    load, paper = make_thirds(), {method.label: method for method in PAPERS}
    cost = measure_step_cost(lambda: load(150, True), paper["TNGD"], {}, 50, 3)
    rows, cells, bit = 50 * 2, 12 * 8 + 8 + 8 * 3 + 3, 16 / 50e9
    # drive and J, H, Jᵀ by element; a conversion of 1 µs each way; 50 τ of 1 µs; the reading
    expected = (cells + rows * (rows + 2 * cells)) * bit + 2e-6 + 50e-6 + cells * bit
    assert cost.device == pytest.approx(expected, rel=1e-6)
    assert 52e-6 < cost.device_factors < cost.device
    assert cost.host > 0.0
    assert cost.expansion > 0.0
    assert cost.seconds == cost.host + cost.expansion + cost.device
    adam = measure_step_cost(lambda: load(150, True), paper["Adam"], {}, 50, 3)
    assert adam.device == adam.device_factors == adam.expansion == 0.0


def test_a_step_costs_its_part_of_a_curvature_that_several_steps_use() -> None:
    assert average_step([9.0, 2.0, 3.0, 2.0], 1) == 2.0
    assert average_step([99.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 9.0], 4) == 3.0


def test_steps_and_times_to_an_accuracy_are_medians_over_seeds() -> None:
    runs = [a_run({1: 0.5, 4: 0.91, 9: 0.96}), a_run({1: 0.5, 6: 0.92, 9: 0.94}), a_run({2: 0.9, 9: 0.95}, seconds=2.0)]
    entrant = an_entrant("TNGD", *runs)
    assert [entrant.steps_to(target) for target in (0.9, 0.95, 0.97)] == [4, 9, math.inf]
    assert entrant.measured_to(0.9) == 4.0
    assert entrant.final == 0.95
    assert entrant.accuracy_within(5.0, lambda _, at: at.seconds) == 0.9  # of 0.91, 0.5 and 0.9
    assert entrant.accuracy_within(0.5, lambda _, at: at.seconds) == 0.0


def test_verdicts_compare_steps_modelled_time_and_accuracy_at_equal_time() -> None:
    contest = Contest(64, 0, 100)
    adam = an_entrant("Adam", a_run({20: 0.9, 50: 0.95, 100: 0.96}))
    best = an_entrant("TNGD", a_run({10: 0.9, 30: 0.95, 80: 0.97, 100: 0.98}), cost=StepCost(1.5, 1.0, 0.1, 0.0))
    outcomes = [verdict.holds for verdict in (*judge_steps(contest, best, adam), *judge_time(contest, best, adam))]
    # half of 20; not of 50; 97 % alone; times of 2.5 s and 1.6 s a step against 1 s
    assert outcomes == [True, False, True, False, True]
    slow = an_entrant("TNGD", a_run({100: 0.5}))
    assert {verdict.holds for verdict in judge_time(contest, slow, slow)} == {None}
    longer = an_entrant("Adam", a_run({20: 0.9, 150: 0.975, 400: 0.99}))
    paper, factors, measured = judge_equal_time(contest, best, [adam, longer])
    assert (paper.holds, factors.holds, measured.holds) == (True, True, True)
    assert "98.00% and 97.50% within 250 s" in paper.outcome
    assert "98.00% and 96.00% within 100 s" in measured.outcome
    paper, _, _ = judge_equal_time(contest, best, [adam])
    assert paper.holds is None  # Adam ends after 100 of 250 s
    paper, _, _ = judge_equal_time(contest, an_entrant("TNGD", a_run({200: 0.95})), [adam])
    assert paper.holds is False


def test_the_papers_claims_are_judged_one_by_one() -> None:
    adam = an_entrant("Adam", a_run({100: 0.90, 200: 0.945}, loss=1.0), cost=StepCost(1.0, 0.0, 0.0, 0.0))
    tngd = an_entrant("TNGD", a_run({100: 0.92, 200: 0.92}, loss=0.5), cost=StepCost(1.0, 4.0, 1.0, 5.0))
    assert [verdict.holds for verdict in judge_paper(adam, tngd)] == [True, True, False, False, True]
    short = an_entrant("TNGD", a_run({10: 0.945}))
    assert [verdict.holds for verdict in judge_paper(short, short)] == [None, False, True, False, False]


def test_both_parts_go_through_a_device_and_write_their_results(tmp_path: Path) -> None:
    plan = replace(
        MINIATURE,
        paper_steps=6,
        contests=(Contest(50, 4, 6),),
        large=(Contest(50, 0, 6, 50_000),),
        seeds=(0, 1),
        stretch=2,
        every=3,
        cost_steps=2,
    )
    reproduce(plan, tmp_path, "inproc:", quiet(), make_thirds())
    content = json.loads((tmp_path / "mnist.json").read_text())
    assert content["status"] == "finished"
    assert {name: len(trials) for name, trials in content["trials"].items()} == {
        "b = 50, Adam": 2,
        "b = 50, TNGD, SPRING": 2,
    }
    assert [entrant["method"] for entrant in content["paper"]] == ["Adam", "TNGD"]
    assert {title: [e["method"] for e in entrants] for title, entrants in content["contests"].items()} == {
        title: ["Adam", "Adam, 2 × the steps", "TNGD, SPRING", "TNGD, SPRING, F every 3 steps"]
        for title in ("b = 50", "b = 50, 50,000 images")
    }
    assert len(content["verdicts"]) == 5 + 2 * (3 + 2 + 2 + 3)
    rows = list(csv.DictReader((tmp_path / "mnist.csv").read_text().splitlines()))
    assert {row["run"] for row in rows} == {"0", "1"}
    assert (tmp_path / "mnist.md").read_text().count("| b = 50") == 8
    assert (tmp_path / "mnist.png").stat().st_size > 50_000


def test_another_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotTaken):
        run(tmp_path, "localhost:1", quiet())


def test_standardised_digits_have_the_mean_and_deviation_of_the_training_pixels_taken_out() -> None:
    black, white = standardised(torch.tensor([0, 255], dtype=torch.uint8))
    assert float(black) == pytest.approx(-0.1304 / 0.3073)
    assert float(white) == pytest.approx((255 / 256 - 0.1304) / 0.3073)
