"""The demonstration: its words follow from its runs, and its picture shows both problems."""

from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from host_client import connect
from spu_lab.commands.demo import CELLS, describe_errors, standing
from spu_lab.studies.descent import Descent, Point
from spu_lab.studies.front_page import front_page
from spu_lab.studies.side_by_side import Solved, exact_values, solve_side_by_side
from spu_lab.training.loop import Evaluation, Run, StepMetrics
from spu_lab.training.settings import Settings


def ended(loss: float, accuracy: float) -> Run:
    return Run(Settings(), 10, 10, [], [Evaluation(9, "test", loss, accuracy)])


@pytest.mark.parametrize(
    ("tngd", "adam", "said"),
    [
        ((0.3, 0.91), (0.1, 0.96), "At the end Adam is ahead: test loss Adam 0.100, TNGD 0.300; "),
        ((0.1, 0.96), (0.3, 0.91), "At the end TNGD is ahead: test loss TNGD 0.100, Adam 0.300; "),
        ((0.3, 0.96), (0.1, 0.91), "At the end Adam is ahead in loss: test loss Adam 0.100, TNGD 0.300; "),
    ],
)
def test_whoever_is_ahead_is_named(tngd: tuple[float, float], adam: tuple[float, float], said: str) -> None:
    assert standing({"TNGD": ended(*tngd), "Adam": ended(*adam)}).startswith(said)


def solved(method: str, *errors: float) -> Solved:
    points = [Point(step, error, error, 2.0 * step, 0.0) for step, error in enumerate(errors, 1)]
    return Solved(Descent(method, "poisson-2d", 0, points), exact_values() + errors[-1])


def test_errors_are_told_with_the_step_at_which_tngd_was_as_good() -> None:
    both = {"TNGD": solved("TNGD", 1.0, 1e-2, 1e-4), "Adam": solved("Adam", 1.0, 0.5, 0.02)}
    assert describe_errors(both) == (
        "Relative L2 error after 6 s: TNGD 1.0e-04 in 3 steps, Adam 2.0e-02 in 3; TNGD was at Adam's lowest error "
        "after 2 steps and 4 s."
    )
    both = {"TNGD": solved("TNGD", 1.0), "Adam": solved("Adam", 0.5)}
    assert describe_errors(both) == "Relative L2 error after 2 s: TNGD 1.0e+00 in 1 steps, Adam 5.0e-01 in 1."


def test_an_equation_is_solved_on_both_sides_and_drawn_beside_mnist() -> None:
    with connect("inproc:", rate=1e9, cells=CELLS) as spu:
        both = solve_side_by_side(spu, steps=3, seed=0, console=Console(file=StringIO()))
    assert {method: one.descent.points[0].step for method, one in both.items()} == {"TNGD": 1, "Adam": 1}
    assert both["TNGD"].descent.points[-1].loss < both["TNGD"].descent.points[0].loss
    for one in both.values():
        error = np.linalg.norm(one.values - exact_values()) / np.linalg.norm(exact_values())
        assert error == pytest.approx(one.descent.points[-1].error)
    runs = {name: ended(0.1, 0.9) for name in ("TNGD", "Adam")}
    for run in runs.values():
        run.steps += [StepMetrics(step, 1, 1.0 / step, 0.5, 0.1 * step, 0.1) for step in (1, 2, 3)]
    figure = front_page(both, runs, title="both", captions=("above", "below"))
    above, below = figure.subfigs
    titles = [axes.get_title(loc="left") for part in (above, below) for axes in part.axes]
    assert [title for title in titles if title] == [
        "Poisson equation: relative L2 error",
        "TNGD: u(x, y)",
        "TNGD: error |u − u*|",
        "Adam: error |u − u*|",
        "MNIST: training loss (each batch, and mean of the last 1)",
        "MNIST: test accuracy",
    ]
    curves = [line.get_color() for line in above.axes[0].lines]
    assert curves == [line.get_color() for line in below.axes[1].lines]
