"""The demonstration: its words follow from its runs, and its picture shows both problems."""

from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from host_client import connect
from spu_lab.commands.demo import CELLS, describe_accuracies, describe_errors
from spu_lab.studies.classification import ClassifierRun, Evaluated
from spu_lab.studies.descent import Descent, Point
from spu_lab.studies.front_page import front_page
from spu_lab.studies.side_by_side import Solved, exact_values, solve_side_by_side, train_side_by_side
from spu_lab.tasks.task import Examples, Task


def run(*accuracies: float) -> ClassifierRun:
    evaluations = [Evaluated(10 * place, accuracy, 1.0) for place, accuracy in enumerate(accuracies, 1)]
    return ClassifierRun([2.0, 1.0, 0.5], evaluations, [0.1, 0.1, 0.1], 0.0, None)


def test_accuracies_are_reported_with_the_steps_to_them() -> None:
    assert describe_accuracies({"TNGD": run(0.92, 0.96), "Adam": run(0.8, 0.91)}) == (
        "MNIST test accuracy: 90% TNGD after 10 steps, Adam after 20 steps; 95% TNGD after 20 steps, Adam never; in "
        "the end, after 3, TNGD 96.0%, Adam 91.0%."
    )


def solved(method: str, *errors: float) -> Solved:
    points = [Point(step, error, error, 2.0 * step, 0.0) for step, error in enumerate(errors, 1)]
    return Solved(Descent(method, "poisson-2d", 0, points), exact_values() + errors[-1])


def test_errors_are_reported_with_the_step_at_which_tngd_was_as_good() -> None:
    both = {"TNGD": solved("TNGD", 1.0, 1e-2, 1e-4), "Adam": solved("Adam", 1.0, 0.5, 0.02)}
    assert describe_errors(both) == (
        "Relative L2 error: TNGD 1.0e-04 in 3 steps and 6 s, Adam 2.0e-02 in 3 and 6 s; TNGD was at Adam's lowest "
        "error after 2 steps and 4 s."
    )
    both = {"TNGD": solved("TNGD", 1.0), "Adam": solved("Adam", 0.5)}
    assert describe_errors(both) == "Relative L2 error: TNGD 1.0e+00 in 1 steps and 2 s, Adam 5.0e-01 in 1 and 2 s."


def test_an_equation_is_solved_by_both_methods_and_drawn_with_mnist() -> None:
    with connect("inproc:", rate=1e9, cells=CELLS) as spu:
        both = solve_side_by_side(spu, steps=3, seed=0, console=Console(file=StringIO()))
    assert {method: one.descent.points[0].step for method, one in both.items()} == {"TNGD": 1, "Adam": 1}
    assert both["TNGD"].descent.points[-1].loss < both["TNGD"].descent.points[0].loss
    for one in both.values():
        error = np.linalg.norm(one.values - exact_values()) / np.linalg.norm(exact_values())
        assert error == pytest.approx(one.descent.points[-1].error)
    runs = {"TNGD": run(0.9, 0.97), "Adam": run(0.8, 0.9)}
    figure = front_page(both, runs, title="both", captions=("above", "below"))
    above, below = figure.subfigs
    titles = [axes.get_title(loc="left") for part in (above, below) for axes in part.axes]
    assert [title for title in titles if title] == [
        "Poisson equation: relative L2 error",
        "TNGD: u(x, y)",
        "TNGD: error |u − u*|",
        "Adam: error |u − u*|",
        "MNIST: training loss of each batch",
        "MNIST: test images classified wrongly",
    ]
    curves = [line.get_color() for line in above.axes[0].lines]
    assert curves == [line.get_color() for line in below.axes[1].lines]


def test_digits_are_learnt_by_both_methods_from_the_same_start() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (1_200,), generator=generator)
    inputs = nn.functional.one_hot(targets, 6).float() + 0.1 * torch.randn(1_200, 6, generator=generator)
    examples = Examples(inputs, targets)
    task = Task(
        name="blobs",
        outputs=3,
        network=lambda: nn.Linear(6, 3),
        criterion=nn.CrossEntropyLoss(),
        prepare=lambda x: x,
        train=examples,
        validation=examples,
        test=examples,
    )
    with connect("inproc:", rate=1e6) as spu:
        runs = train_side_by_side(task, spu, steps=8, seed=0, console=Console(file=StringIO()))
    assert runs["TNGD"].losses[0] == runs["Adam"].losses[0]
    assert runs["TNGD"].losses[-1] < runs["TNGD"].losses[0]
    assert runs["TNGD"].diverged is None
    assert [each.step for each in runs["TNGD"].evaluations] == [1, 2, 3, 4, 5, 6, 7, 8]
