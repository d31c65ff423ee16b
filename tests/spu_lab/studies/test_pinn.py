"""The experiment on physics-informed networks: its methods, verdicts, files and miniature."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from host_client import Capture, connect
from host_client.blocking import Session
from host_client.curvature import CurvatureFallback
from host_client.solvers import solve_dense
from spu_lab.experiments import pinn
from spu_lab.studies.descent import Descent, Point, descend
from spu_lab.studies.descent_figure import descent_figure
from spu_lab.studies.descent_verdict import judge_end, judge_error, judge_likeness, judge_speed, row
from spu_lab.studies.pinn_methods import Growth, by_broyden, by_device, by_lbfgs, by_solver
from spu_lab.studies.refinement import RefinedReadings
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.tasks.pinn import POISSON_2D, POISSON_5D, Equation, Problem
from spu_link.operators import Rows

SMALL = replace(POISSON_2D, interior=300, boundary=60)


@pytest.fixture(autouse=True)
def _without_notes_on_speed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureFallback)
        yield


def ill_conditioned() -> tuple[Rows, torch.Tensor]:
    """Rows with singular values from 1 to 1e-3, and a drive in the range of F."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(60, 30, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    operator = Rows(left @ torch.diag(torch.logspace(0, -3, 30, dtype=torch.float64)) @ right[:30].T)
    return operator, operator.curvature(torch.randn(30, generator=generator, dtype=torch.float64))


@contextmanager
def sixteen_bits() -> Iterator[Session]:
    board = {"preset": "paper-16-bit", "thermal.temperature": "0", "rails.headroom": "1e6"}
    with connect("inproc:", clock="stepped", driver="analog", driver_option=board) as spu, spu.session() as session:
        yield session


def test_refined_readings_of_a_16_bit_device_are_far_closer_to_the_solution() -> None:
    operator, drive = ill_conditioned()
    damping, errors, residuals = 1e-5, [], []
    exact, _ = solve_dense(operator, drive, damping)
    for refinements in (0, 3):
        with sixteen_bits() as session:
            solver = RefinedReadings(session, 1e6, noise=0.0, refinements=refinements)
            x, info = solver(operator, drive, damping)
        errors.append(float((x - exact).norm() / exact.norm()))
        residuals.append(info["residual"])
        assert info["readings"] == refinements + 1
    assert errors[0] > 1e-3
    assert errors[1] < 0.01 * errors[0]
    assert residuals[1] < 0.01 * residuals[0]


def test_a_refinement_that_does_not_help_is_left_out() -> None:
    operator, drive = ill_conditioned()
    with sixteen_bits() as session:
        x, info = RefinedReadings(session, 1e5, noise=1e-2, refinements=20)(operator, drive, 1e-3)
    assert info["readings"] < 21
    left = drive - operator.curvature(x) - 1e-3 * x
    assert info["residual"] == pytest.approx(float(left.norm() / drive.norm()))


def test_a_drive_of_zeros_needs_no_reading() -> None:
    operator, drive = ill_conditioned()
    with sixteen_bits() as session:
        x, info = RefinedReadings(session, 1e5, noise=0.0, refinements=2)(operator, 0.0 * drive, 1e-3)
    assert info == {"readings": 0, "residual": 0.0}
    assert not x.any()


class Residuals(nn.Module):
    """All residuals of a problem, divided by the root of their number inside and on the boundary."""

    def __init__(self, equation: Equation, seed: int) -> None:
        super().__init__()
        self.equation, self.network = equation, equation.build(0)
        generator = torch.Generator().manual_seed(seed)
        size = equation.interior, equation.coordinates
        self.points = torch.rand(*size, generator=generator, dtype=torch.float64)
        self.boundary = equation.draw_boundary(equation.boundary, generator)

    def forward(self) -> torch.Tensor:
        inside = self.equation.residual(self.network, self.points)
        outside = self.network(self.boundary) - self.equation.solution(self.boundary)
        return torch.cat([part[:, 0] / len(part) ** 0.5 for part in (inside, outside)])


@pytest.mark.parametrize("equation", [SMALL, replace(POISSON_5D, interior=40, boundary=20)], ids=("2d", "5d"))
def test_the_curvature_is_that_of_the_residuals(equation: Equation) -> None:
    problem, residuals = Problem(equation, 0), Residuals(equation, 0)
    capture = Capture(residuals.network, problem.criterion)
    problem.loss(residuals.network).backward()
    operator = capture.operator_of_gradients()
    capture.close()
    rows = torch.func.jacrev(lambda moved: torch.func.functional_call(residuals, moved, ()))(
        dict(residuals.named_parameters())
    )
    jacobian = torch.cat([rows[name].flatten(1) for name, _ in residuals.named_parameters()], dim=1)
    v = torch.randn(equation.parameters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(operator.curvature(v), jacobian.T @ (jacobian @ v))


def test_a_device_that_settles_gives_the_steps_of_the_digital_method() -> None:
    problem, errors = Problem(SMALL, 0), []
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        for way in ("device", "digital"):
            network = SMALL.build(0)
            if way == "device":
                stepper = by_device(problem, network, session, damping=1e-3, analog_time=Growth(1e5, 1e5, 1))
            else:
                stepper = by_solver(problem, network, solve_dense, damping=1e-3)
            errors.append([point.error for point in descend(problem, network, stepper, 4)])
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_lbfgs_lowers_the_loss_step_by_step() -> None:
    problem, network = Problem(SMALL, 0), SMALL.build(0)
    losses = [point.loss for point in descend(problem, network, by_lbfgs(problem, network), 30)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1 * losses[0]


def test_broyden_trains_the_network_itself() -> None:
    problem, network = Problem(SMALL, 0), SMALL.build(0)
    losses = [point.loss for point in descend(problem, network, by_broyden(problem, network), 40)]
    assert losses == sorted(losses, reverse=True)
    assert problem.loss(network).item() <= losses[-1] < 0.01 * losses[0]


def test_growth_is_geometric_and_ends() -> None:
    assert [Growth(1.0, 100.0, 4)(step) for step in (0, 2, 4, 9)] == pytest.approx([1.0, 10.0, 100.0, 100.0])


def test_points_are_those_asked_for_and_the_time_of_the_device_counts_from_the_start() -> None:
    problem, network, modelled = Problem(SMALL, 0), SMALL.build(0), iter(range(5, 100))
    points = descend(problem, network, lambda: 1.0, 7, every=3, device_seconds=lambda: float(next(modelled)))
    assert [point.step for point in points] == [1, 3, 6, 7]
    assert [point.device_seconds for point in points] == [1.0, 2.0, 3.0, 4.0]
    assert points[-1].seconds == points[-1].wall_seconds + 4.0


def made(method: str, errors: Sequence[float], every: int = 1, seconds: float = 1.0, device: float = 0.0) -> Descent:
    """A run whose steps take so many seconds each."""
    steps = [every * (k + 1) for k in range(len(errors))]
    points = [Point(s, e, 1.0, seconds * s, device * s) for s, e in zip(steps, errors, strict=True)]
    return Descent(method, "poisson-2d", 0, points)


def test_a_table_has_medians_and_says_what_is_not_reached() -> None:
    descents = [made("A", [0.1, 5e-3]), made("A", [5e-3, 5e-4], device=2.0), made("A", [0.1, 0.1])]
    assert row("P", descents) == ["P, A", "2 / 3 s", "–", "–", "5.0e-03"]


def test_claims_are_judged_by_medians_and_hold_or_do_not() -> None:
    fast = [made("A", [0.1, 1e-3, end]) for end in (1e-5, 1e-5, 0.1)]
    slow = [made("B", [0.1, 1e-2, end], every=10) for end in (2e-3, 2e-3, 2e-3)]
    assert judge_error("P", fast, 1e-4, 3).holds
    assert not judge_error("P", fast, 1e-4, 2).holds
    steps, less_time = judge_speed("P", fast, slow)
    assert steps.holds
    assert less_time.holds
    assert "2 steps, of B 30 steps" in steps.outcome
    assert "2 s, of B 30 s" in less_time.outcome
    with_device = [made("A", [0.1, 1e-3, 1e-5], device=20.0) for _ in range(3)]
    assert [verdict.holds for verdict in judge_speed("P", with_device, slow)] == [True, False]
    never = judge_speed("P", [made("A", [0.1])] * 3, slow)
    assert not any(verdict.holds for verdict in never)
    assert "it does not come, of B 30 steps" in never[0].outcome
    to_target = judge_speed("P", fast, slow, 1e-2)
    assert "an error of 0.01 in at most a tenth of the steps of B" in to_target[0].claim
    assert "To 0.01: 2 steps, of B 20 steps" in to_target[0].outcome
    assert [verdict.holds for verdict in to_target] == [True, True]
    assert [verdict.holds for verdict in judge_speed("P", fast, slow, 1e-3)] == [True, True]  # B never comes there
    assert judge_end("P", fast, slow).holds
    assert not judge_end("P", slow, fast).holds
    assert not judge_likeness("P", slow, fast, 3.0, 30).holds
    assert judge_likeness("P", [made("C", [2e-5])] * 3, fast, 3.0, 3).holds


def test_the_picture_has_a_row_a_problem_and_a_colour_a_method() -> None:
    runs = {
        "TNGD": [made("TNGD", [0.1, 0.01]), made("TNGD", [0.2, 0.001])],
        "TNGD, 16 bits": [made("TNGD, 16 bits", [0.1, 0.02])],
        "Adam": [made("Adam", [0.5, 0.1], every=10)],
    }
    figure = descent_figure({"first": runs, "second": runs}, title="T", caption="C")
    assert len(figure.axes) == 4
    colours = [[line.get_color() for line in axes.lines] for axes in figure.axes]
    assert all(those == colours[0] for those in colours)
    assert len(set(colours[0])) == 2
    assert [line.get_linestyle() for line in figure.axes[0].lines] == ["-", "--", "-"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(runs)
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    assert [axes.get_xlabel() for axes in figure.axes[2:]] == ["steps", "wall time + modelled time of the device, s"]


def test_the_miniature_writes_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(pinn.MINIATURE, equation=SMALL, steps=3, adam_steps=60, lbfgs_steps=11, broyden_steps=11)
    monkeypatch.setattr(pinn, "MINIATURE", tiny)
    shown = StringIO()
    pinn.run(tmp_path, "inproc:", Console(file=shown, width=120), quick=True)
    points = list(csv.DictReader((tmp_path / "pinn.csv").read_text().splitlines()))
    of_methods = {method: [p for p in points if p["method"] == method] for method in (pinn.TNGD, pinn.SIXTEEN)}
    for of_method in of_methods.values():
        assert [int(point["step"]) for point in of_method] == [1, 2, 3]
        assert float(of_method[-1]["device_seconds"]) > float(of_method[0]["device_seconds"]) > 0.0
    content = json.loads((tmp_path / "pinn.json").read_text())
    assert content["status"] == "finished"
    assert {run["method"] for run in content["runs"]} >= {pinn.DIGITAL, pinn.ADAM, pinn.LBFGS, pinn.BROYDEN}
    assert len(content["verdicts"]) == 7
    assert content["settings"]["plans"][0]["equation"] == "poisson-2d"
    table = (tmp_path / "pinn.md").read_text()
    assert all(verdict["sentence"] in table for verdict in content["verdicts"])
    assert (tmp_path / "pinn.png").stat().st_size > 10_000
    assert "poisson-2d, TNGD, 16 bits, seed 0" in shown.getvalue()


def test_a_device_that_is_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotTaken, match="pinn needs two devices"):
        pinn.run(tmp_path, "unix:/tmp/spu.sock", Console(file=StringIO()))
