"""MNIST: TNGD and Adam at the settings of the paper's Fig. 3; and seven methods, tuned alike, at two batch sizes.

Hyperparameters are chosen on validation images, with as many trials for each method; the test images are only reported.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.classification import even_steps, geometric_steps
from spu_lab.studies.classifier_methods import METHODS, PAPERS, Method
from spu_lab.studies.contest import COLUMNS, TARGETS, Contest, Entrant, row
from spu_lab.studies.contest_figure import contest_figure
from spu_lab.studies.contest_runs import EVALUATIONS, Candidate, Load, Workshop
from spu_lab.studies.contest_verdict import judge_equal_time, judge_paper, judge_steps, judge_time
from spu_lab.studies.search import Trial, best_of
from spu_lab.studies.step_cost import BOARD
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.studies.verdicts import to_json, write_table
from spu_lab.tasks.mnist import mnist, standardised, unit_interval
from spu_lab.tasks.task import Task
from spu_lab.training.report import save_whole


@dataclass(frozen=True)
class Plan:
    """Runs of the experiment.

    Attributes:
        seeds: of network, batches, drawn labels and the device.
        paper_steps: iterations at the paper's settings, b = 64: 10 epochs of 157.
        rounds, trials: of the search, and trials of each method in a round.
        contests: the tuned comparisons; the search is that of these.
        large: more images, for the best variant of TNGD and Adam with the hyperparameters of the same batch size.
        methods: those that are tuned.
        stretch: Adam is also run for so many times the steps.
        every: the best variant of TNGD is also run with a new curvature after so many steps only.
        cost_steps: steps on which the time of the host is measured.
    """

    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    paper_steps: int = 1570
    rounds: int = 2
    trials: int = 8
    contests: Sequence[Contest] = (Contest(64, 200, 400), Contest(512, 60, 100))
    large: Sequence[Contest] = (Contest(512, 0, 150, 50_000),)
    methods: Sequence[Method] = METHODS
    stretch: int = 4
    every: int = 4
    cost_steps: int = 25


MINIATURE = Plan(
    seeds=(0,),
    paper_steps=30,
    rounds=2,
    trials=1,
    contests=(Contest(64, 10, 20),),
    large=(),
    methods=[method for method in METHODS if method.label in ("Adam", "TNGD, SPRING")],
    cost_steps=5,
)
"""The plan of ``--quick``."""


@cache
def load_mnist(images: int, standard: bool) -> Task:
    """Return MNIST with so many training images, of pixels in [0, 1) or of mean 0 and deviation 1."""
    return replace(mnist(images), prepare=standardised if standard else unit_interval)


Trials: TypeAlias = Mapping[tuple[Contest, str], Sequence[Trial]]
"""All trials by contest and label of the method."""


def run(out: Path, spu: str | None, console: Console, *, quick: bool = False) -> None:
    """Run both parts, and write their results.

    Args:
        out: folder for ``mnist.csv``, ``.json``, ``.md`` and ``.png``.
        spu: None gives each run a daemon with a stepped clock and the paper's device; ``"inproc:"`` puts the device
            into the run's process.
        console: where to show it.
        quick: whether to run the miniature.

    Raises:
        DeviceNotTaken: when another device is given.
        DataUnavailable, DaemonFailed, SpuError: when the data or a daemon is missing, or a device fails.
    """
    reproduce(MINIATURE if quick else Plan(), out, spu, console, load_mnist)


def reproduce(plan: Plan, out: Path, spu: str | None, console: Console, load: Load) -> None:
    """Run a plan; see `run`."""
    if spu not in (None, "inproc:"):
        raise DeviceNotTaken("mnist needs the paper's device with two timing models, and starts their daemons")
    load(max(contest.images for contest in (*plan.contests, *plan.large)), True)  # data are downloaded once
    workshop = Workshop(load, spu, out, console)
    paper = workshop.run(_papers(plan), plan.seeds, cost_steps=plan.cost_steps)
    trials = workshop.search(plan.contests, plan.methods, rounds=plan.rounds, trials=plan.trials, seed=plan.seeds[0])
    best = {contest.batch_size: _best_device(plan, trials, contest) for contest in plan.contests}
    contests = {}
    for contest in (*plan.contests, *plan.large):
        candidates = _candidates(plan, contest, trials, best[contest.batch_size])
        contests[contest] = workshop.run(candidates, plan.seeds, cost_steps=plan.cost_steps)
    _report(plan, out, paper, contests, trials, best, console)


def _papers(plan: Plan) -> list[Candidate]:
    """Return Adam and TNGD at the paper's settings, evaluated after each epoch."""
    at = even_steps(plan.paper_steps, max(1, round(plan.paper_steps / 157)))
    contest = Contest(64, 0, plan.paper_steps)
    return [Candidate(m.label, m, {}, contest, at, decay=False, standard=False) for m in PAPERS]


def _best_device(plan: Plan, trials: Trials, contest: Contest) -> str:
    """Return the label of the variant of TNGD with the best trial."""
    labels = [method.label for method in plan.methods if method.uses_device]
    return min(labels, key=lambda label: best_of(trials[contest, label]).score)


def _candidates(plan: Plan, contest: Contest, trials: Trials, best: str) -> list[Candidate]:
    """Return the methods with the hyperparameters of their best trials.

    Adam is there over more steps too, and the best variant of TNGD with a curvature for several steps. On more images
    these are the best variant and Adam alone, with the hyperparameters of the same batch size.
    """
    searched = next(each for each in plan.contests if each.batch_size == contest.batch_size)
    longer = replace(contest, steps=plan.stretch * contest.steps)
    candidates = []
    for method in plan.methods:
        values = best_of(trials[searched, method.label]).values
        entered = [(method.label, method, contest)] if contest == searched or method.label in (best, "Adam") else []
        if method.label == best:
            thrifty = replace(method, fixed={**method.fixed, "curvature_every": plan.every})
            entered.append((_thrifty(plan, best), thrifty, contest))
        if method.label == "Adam":
            entered.append((f"Adam, {plan.stretch} × the steps", method, longer))
        candidates += [
            Candidate(label, kind, values, length, geometric_steps(length.steps)) for label, kind, length in entered
        ]
    return candidates


def _thrifty(plan: Plan, best: str) -> str:
    return f"{best}, F every {plan.every} steps"


def _report(
    plan: Plan,
    out: Path,
    paper: Sequence[Entrant],
    contests: Mapping[Contest, Sequence[Entrant]],
    trials: Trials,
    best: Mapping[int, str],
    console: Console,
) -> None:
    """Write table, picture, CSV and JSON."""
    verdicts = judge_paper(*paper)
    for contest, entrants in contests.items():
        known = {entrant.label: entrant for entrant in entrants}
        label = best[contest.batch_size]
        thrifty = known[_thrifty(plan, label)]
        verdicts += judge_steps(contest, known[label], known["Adam"])
        for entrant in (known[label], thrifty):
            verdicts += judge_time(contest, entrant, known["Adam"])
        adams = [entrant for entrant in entrants if entrant.method.label == "Adam"]
        verdicts += judge_equal_time(contest, thrifty, adams)
    over = f"{len(plan.seeds)} seeds" if len(plan.seeds) > 1 else "one seed"
    number = plan.rounds * plan.trials
    tuned = [row(contest, entrant) for contest, entrants in contests.items() for entrant in entrants]
    title = f"MNIST, {over}: steps, modelled and measured seconds to 90, 95 and 97 % test accuracy, medians"
    papers = Contest(64, 0, plan.paper_steps)
    rows = [
        [f"Fig. 3, {cells[0].partition(', ')[2]}", *cells[1:]] for cells in (row(papers, entrant) for entrant in paper)
    ]
    notes = [
        f"{contest.title}, {entrant.label}: {entrant.describe()}."
        for contest, entrants in contests.items()
        for entrant in entrants
        if contest in plan.contests
    ]
    notes += [
        "Column factors: modelled with arrays of factors. The host's time is that of one core; it is another on a GPU.",
        "10,000 of the 60,000 training images of MNIST are for validation, so at most 50,000 are trained on.",
        "K-FAC draws one label for each sample and has new factors every tenth step; the other curvatures are those of "
        "four labels, new in every step but with few F. NGD-CG makes 10 iterations.",
        "In the verdicts on tuned methods TNGD is the variant with the best trial of all. Adam over more steps, TNGD "
        "with few F and runs on more images have the hyperparameters that were found without these changes.",
    ]
    table = [*rows, *tuned]
    write_table(out / "mnist.md", COLUMNS, table, verdicts, console, title=title, notes=notes)
    caption = (
        f"{over.capitalize()}. Top: mean ± standard deviation; b = 64, 10,000 images, constant η (Adam 1e-3; TNGD "
        "0.01, λ = 0.01, t = 50 τ, t_d = 0). Below: median, and min to max; pixels of mean 0 and deviation 1; "
        f"{number} trials of each method with Optuna, each scored by {EVALUATIONS} evaluations of validation images; η "
        "falls to 0 in a straight line. Dashed: Adam over more steps, TNGD with a new F after several steps only. "
        "Horizontal lines: 90, 95, 97 %. Modelled time: the host's part of a step, measured on one core without an "
        "emulator (gradient, curvature, update, and the solve of a digital method), and then the device: 50 Gb/s, "
        "16 bits, τ = 1 µs, with the paper's arrays (J, H, Jᵀ by element; the host multiplies J out) or, dotted, for "
        "TNGD with few F, arrays of factors. Measured time: with the emulator, runs side by side. Accuracies are known "
        "at each of the first 10 steps, then at steps 10 % apart."
    )
    picture = contest_figure(
        paper, contests, title="MNIST: TNGD through a 16-bit device, and tuned baselines", caption=caption
    )
    save_whole(picture, out / "mnist.png")
    _write_csv(out / "mnist.csv", {papers: paper, **contests})
    write_json(
        out / "mnist.json",
        {
            "status": "finished",
            **provenance(),
            "plan": {**asdict(plan), "methods": [asdict(method) for method in plan.methods]},
            "device": BOARD,
            "targets": TARGETS,
            "seeds": plan.seeds,
            "trials": {f"{c.title}, {label}": [asdict(t) for t in tried] for (c, label), tried in trials.items()},
            "best_variant": {f"b = {size}": label for size, label in best.items()},
            "paper": [entrant.to_json() for entrant in paper],
            "contests": {c.title: [entrant.to_json() for entrant in entrants] for c, entrants in contests.items()},
            "verdicts": to_json(verdicts),
        },
    )
    console.print(f"CSV, JSON, table and plot: {out}", highlight=False)


def _write_csv(path: Path, contests: Mapping[Contest, Sequence[Entrant]]) -> None:
    """Write all evaluations on test images."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        columns = ("contest", "method", "run", "step", "test_accuracy", "measured_s", "modelled_s")
        writer.writerow((*columns, "modelled_with_factors_s"))
        for contest, entrants in contests.items():
            for entrant in entrants:
                cost = entrant.cost
                for number, result in enumerate(entrant.runs):
                    head = (f"{contest.title}, {contest.steps} steps", entrant.label, number)
                    writer.writerows(
                        (
                            *head,
                            at.step,
                            at.accuracy,
                            at.seconds,
                            at.step * cost.seconds,
                            at.step * cost.seconds_factors,
                        )
                        for at in result.evaluations
                    )
