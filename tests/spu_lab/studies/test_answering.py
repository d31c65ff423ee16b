"""The experiment on question answering: a miniature of it, its report, and how its data are given."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from spu_lab.experiments import question_answering as experiment
from spu_lab.experiments.question_answering import METHODS, Plan
from spu_lab.studies.answering_report import BOTH, Result, judge, row
from spu_lab.studies.sweeps import Arm, ArmResult
from spu_lab.tasks.encoder import encoder_folder
from spu_lab.tasks.question_answering import question_answering
from spu_lab.training.loop import Evaluation, Run, StepMetrics
from spu_lab.training.settings import Settings
from tests.cases.questions import layout, write_encoder, write_questions
from tests.command_line import tngd, words

PLAN = Plan(sizes=(12, 4, 6), length=24, epochs=2, seeds=(0, 1), batch_size=6)
REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "squad-dev-subset.json"


def quiet() -> Console:
    return Console(file=StringIO())


def test_all_methods_are_tuned_and_compared_over_seeds(tmp_path: Path) -> None:
    data, encoder = write_questions(tmp_path / "questions.json"), write_encoder(tmp_path / "encoder")
    task, out = question_answering(data, encoder, PLAN.sizes, PLAN.length), tmp_path / "out"
    results = experiment.answer(out, "inproc:", quiet(), task, PLAN)
    content = json.loads((out / "question-answering.json").read_text())
    for method in METHODS:
        mine = [result for result in results if result.method == method.name]
        assert [r.runs.arm.value for r in mine if "paper's" in r.chosen and r.time in (None, 0.4)] == [method.lr]
        tried = {float(lr): loss for lr, loss in content["searched"][method.name].items()}
        assert set(tried) == set(method.grid)
        assert [r.runs.arm.value for r in mine if "best" in r.chosen] == [min(tried, key=tried.__getitem__)]
    assert sorted(r.time for r in results if r.method == "TNGD-Adam" and "paper's" in r.chosen) == [0.1, 0.2, 0.4]
    for result in results:
        assert [run.settings.seed for run in result.runs.finished] == [0, 1]
        assert all(
            0.0 <= em <= f1 <= 1.0 for em, f1 in zip(result.scores("exact_match"), result.scores("f1"), strict=True)
        )
    assert len({tuple(result.training_losses(2)) for result in results}) == len(results)
    lines = csv.DictReader((out / "question-answering.csv").read_text().splitlines())
    steps = Counter((line["arm"], line["seed"]) for line in lines)
    assert set(steps.values()) == {4}
    assert len(steps) == sum(len(method.grid) for method in METHODS) + 2 + len(results)
    assert content["arms"][0]["runs"][0]["results"]["parameters"] == 4 * 2 * (8 + 8) + 2 * 8 + 2
    assert content["arms"][0]["runs"][0]["evaluations"][-1]["scores"]["f1"] == results[0].scores("f1")[0]
    assert (out / "question-answering.md").read_text().count("\n- ") == len(content["verdicts"] + content["notes"])
    for method in METHODS:
        (best,) = (r.runs.arm.value for r in results if r.method == method.name and "best" in r.chosen)
        said = any(line.startswith(f"{method.name}: its best η") for line in content["notes"])
        assert said == (best in (min(method.grid), max(method.grid)))
    assert (out / "question-answering.png").stat().st_size > 10_000


def test_the_miniature_has_one_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    monkeypatch.setattr(experiment, "encoder_folder", lambda: encoder)
    data = write_questions(tmp_path / "questions.json", layout(60))
    experiment.run(tmp_path / "out", "inproc:", quiet(), data=data, quick=True)
    content = json.loads((tmp_path / "out" / "question-answering.json").read_text())
    assert content["plan"]["seeds"] == [0]
    assert {run["results"]["iterations"] for arm in content["arms"] for run in arm["runs"]} == {2}


def result(method: int, lr: float, chosen: str, ends: Sequence[float | None], **changed: float) -> Result:
    arm: Arm = METHODS[method].arm(lr, **changed)

    def run(end: float) -> Run:
        steps = [StepMetrics(k + 1, 1, end, 0.0, 0.0, 0.1) for k in range(4)]
        return Run(Settings(), 10, 10, steps, [Evaluation(4, "test", end, 0.5, {"exact_match": 0.25, "f1": 1 / end})])

    runs = tuple(None if end is None else run(end) for end in ends)
    return Result(METHODS[method].name, chosen, ArmResult(arm, runs))


def test_the_verdict_says_of_each_claim_whether_it_holds() -> None:
    results = [
        result(0, 1e-3, BOTH, (2.0, 2.1, 2.2)),
        result(1, 1e-3, "paper's", (3.0, 3.11, 3.19)),
        result(1, 3e-3, "best", (1.0, 1.11, 1.19)),
        result(2, 1e-2, BOTH, (2.0, 3.0, 4.0)),
        result(0, 1e-3, "paper's", (2.5, None, 2.6), analog_time=0.1),
    ]
    verdicts = judge(results, 2)
    assert [verdict.holds for verdict in verdicts] == [True, None, False, None, False]
    assert "TNGD-Adam, η = 0.001, t = 0.4 τ less Adam, η = 0.001: -1 ± 0.025" in verdicts[0].outcome
    assert verdicts[4].outcome.endswith("the highest mean is that of Adam.")
    assert row(results[4], 2)[0] == "TNGD-Adam, η = 0.001, t = 0.1 τ (1 of 3 diverged)"
    assert row(results[0], 2)[4] == "25% ± 0"


def test_runs_that_all_diverged_decide_nothing() -> None:
    results = [result(k, METHODS[k].lr, BOTH, (None, None) if k == 0 else (2.0, 2.5)) for k in (0, 1, 2)]
    verdict = judge(results, 2)[0]
    assert verdict.holds is None
    assert "No seed has both runs" in verdict.outcome
    assert row(results[0], 2)[2:] == ["–"] * 5


def test_data_are_given_to_experiments_that_need_them_and_to_no_others(tmp_path: Path) -> None:
    result = tngd("reproduce", "question-answering", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "question-answering needs questions in the JSON layout of SQuAD; name the file with --data" in words(
        result.stderr
    )
    data = str(write_questions(tmp_path / "questions.json"))
    result = tngd("reproduce", "noise", "--data", data, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "noise brings its own data; leave out --data" in words(result.stderr)
    result = tngd("reproduce", "question-answering", "--data", f"{tmp_path}/none.json", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert {path.name for path in tmp_path.iterdir()} == {"questions.json"}


def test_a_missing_package_is_one_message_and_no_run_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("experiments.question_answering", "tasks.question_answering", "tasks.span_network"):
        monkeypatch.delitem(sys.modules, f"spu_lab.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    (tmp_path / "question-answering.json").write_text('{"status": "finished"}')
    data = str(write_questions(tmp_path / "questions.json"))
    result = tngd("reproduce", "question-answering", "--data", data, "--overwrite", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "the package 'peft' is not installed; install it" in words(result.stderr)
    assert json.loads((tmp_path / "question-answering.json").read_text()) == {"status": "finished"}


def test_too_few_questions_are_refused_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    monkeypatch.setattr(experiment, "encoder_folder", lambda: encoder)
    data = str(write_questions(tmp_path / "questions.json"))
    result = tngd("reproduce", "question-answering", "--data", data, "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "holds 24 questions with an answer, on 12 passages; 256 + 80 + 120 are needed" in words(result.stderr)
    assert json.loads((tmp_path / "out" / "question-answering.json").read_text())["status"] == "failed"


@pytest.mark.skipif(not REAL.exists(), reason="needs shared/data/squad-dev-subset.json next to the checkout")
def test_the_full_extent_fits_the_subset_of_squad() -> None:
    plan = experiment.FULL
    task = question_answering(REAL, encoder_folder(), plan.sizes, plan.length)
    assert (len(task.train), len(task.validation), len(task.test)) == plan.sizes
