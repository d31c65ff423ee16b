"""The experiment on time and memory of an iteration: measurements, exponents, verdicts, files and miniature."""

from __future__ import annotations

import csv
import json
import math
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from spu_lab.experiments import complexity
from spu_lab.studies.exponents import fit_exponent
from spu_lab.studies.iteration_cost import (
    Cost,
    Size,
    allocated_bytes,
    count_calls,
    measure,
    mnist_network,
    perceptron,
    time_steps,
)
from spu_lab.studies.iteration_figure import iteration_figure
from spu_lab.studies.iteration_methods import ANALOG_TIME, METHODS, Modelled, ModelledDevice
from spu_lab.studies.iteration_plan import FULL, MINIATURE, Plan, Sweeps
from spu_lab.studies.iteration_verdicts import fit, judge_adam, judge_calls, judge_exponents, judge_speed
from spu_lab.studies.study import DeviceNotTaken
from spu_link.operators import Rows
from spu_server.timing import Timing


@pytest.mark.parametrize("size", [Size(1_000, 8, 80), Size(10_000, 8, 20), Size(100_000, 8, 10)], ids=str)
def test_a_network_has_nearly_as_many_parameters_as_asked_for(size: Size) -> None:
    network = perceptron(size, 0)
    assert network.parameters == pytest.approx(size.parameters, rel=0.01)
    assert network.model(network.inputs).shape == (8, size.outputs)


def test_the_network_for_mnist_is_the_reference_network() -> None:
    network = mnist_network(complexity.MNIST, 0)
    assert network.parameters == complexity.MNIST.parameters
    assert network.model(network.inputs).shape == (64, 10)


def test_tensors_are_counted_at_the_peak_and_what_was_there_before_is_not() -> None:
    before = torch.zeros(1_000_000)
    with allocated_bytes() as allocated:
        for _ in range(3):
            first = before + 1.0
            second = first + 1.0
            del first, second
    assert 8_000_000 <= allocated[0] < 8_001_000


def test_calls_of_the_model_are_counted() -> None:
    model = nn.Linear(2, 2)
    with count_calls(model) as calls:
        model(torch.zeros(1, 2))
        model(torch.zeros(1, 2))
    model(torch.zeros(1, 2))
    assert len(calls) == 2


def test_the_first_iteration_is_not_timed() -> None:
    waits = iter([0.05, 0.0, 0.0, 0.0])

    def step() -> Modelled:
        time.sleep(next(waits))
        return Modelled()

    assert time_steps(step, 0.0) < 0.04


def test_an_exponent_is_the_slope_of_the_logarithms() -> None:
    sizes = [10, 100, 1000]
    exact = fit_exponent(sizes, [[3.0 * size**1.5] * 2 for size in sizes])
    assert (exact.value, exact.half) == (pytest.approx(1.5), pytest.approx(0.0, abs=1e-9))
    assert (exact.smallest, exact.largest) == (10, 1000)
    # Deviations of +d, -2d, +d decades from the line leave the slope and have a standard error of √(6 d² / 1 / 2).
    bent = fit_exponent(sizes, [[10**1.1], [10**1.8], [10**3.1]])
    assert bent.value == pytest.approx(1.0)
    assert bent.half == pytest.approx(12.7062 * math.sqrt(0.06 / 2), rel=1e-5)


def test_two_sizes_decide_nothing() -> None:
    exponent = fit_exponent([1, 10], [[1.0, 1.0], [10.0, 10.0]])
    assert (exponent.value, exponent.place(1.0)) == (pytest.approx(1.0), None)


@pytest.mark.parametrize(("stated", "place"), [(3.0, "below"), (2.0, "within"), (1.95, "within"), (1.0, "above")])
def test_an_interval_is_compared_with_the_stated_exponent(stated: float, place: str) -> None:
    assert fit_exponent([1, 2, 4], [[1.0], [4.0], [16.0]]).place(stated) == place


def test_a_modelled_device_reports_what_the_paper_s_formula_gives() -> None:
    m, n = 6, 40
    operator, drive = Rows(torch.randn(m, n)), torch.randn(n)
    x, info = ModelledDevice(Timing(arrays="paper"))(operator, drive, 0.1)
    assert info is not None
    assert torch.equal(x, drive)
    resistors = m * (m + 2 * n)
    conversions, transfers = 2e-6, 16 * (resistors + 2 * n) / 50e9
    assert info["modelled"].seconds == pytest.approx(transfers + conversions + ANALOG_TIME * 1e-6)
    assert info["modelled"].nbytes == 2 * resistors


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # of torch's forward-mode derivatives
def test_cg_by_model_calls_and_cg_with_structured_factors_make_the_same_step() -> None:
    changes = []
    for label in ("NGD-CG", "NGD-CG, structured"):
        network = perceptron(Size(300, 4, 3), 0)
        network.model.double()
        network = replace(network, inputs=network.inputs.double())
        before = nn.utils.parameters_to_vector(network.trained()).detach().clone()
        METHODS[label].make(network, None)()
        changes.append(nn.utils.parameters_to_vector(network.trained()).detach() - before)
    assert torch.allclose(changes[0], changes[1], rtol=1e-4, atol=1e-4 * float(changes[0].abs().max()))


def test_a_point_of_a_modelled_device_has_its_time_and_what_it_holds() -> None:
    cost = measure("TNGD, device", Size(500, 4, 3), network="perceptron", repeats=2, seconds_each=0.0, spu=None)
    m, n = 8, cost.size.parameters
    assert cost.modelled == pytest.approx(16 * (m * (m + 2 * n) + 2 * n) / 50e9 + 52e-6)
    assert len(cost.seconds) == 2
    assert min(cost.seconds) > cost.modelled
    assert cost.nbytes > 4 * m * n + 2 * m * (m + 2 * n)
    assert cost.calls == 1


def cost_at(method: str, size: Size, seconds: float, modelled: float = 0.0) -> Cost:
    return Cost(method, size, (seconds, seconds), modelled, 8 * size.parameters, 1)


SWEEPS = Sweeps(
    [Size(n, 8, 4) for n in (100, 200, 400)],
    [Size(100, b, 4) for b in (8, 16, 32)],
    [Size(100, 8, d) for d in (4, 8, 16)],
    "bN",
)


def test_a_bound_holds_if_no_exponent_is_above_the_stated_one() -> None:
    linear = [cost_at("Adam", size, 1e-6 * size.batch * size.parameters) for size in SWEEPS.sizes]
    time_verdict, memory_verdict = judge_exponents("Adam", fit(linear, SWEEPS), SWEEPS)
    assert (time_verdict.holds, memory_verdict.holds) == (True, True)
    assert time_verdict.claim == "Adam: time per iteration grows at most as O(bN)"
    assert "in N 1.00 ± 0.00 over 100 to 400 (stated 1: within)" in time_verdict.outcome
    with_outputs = [replace(cost, seconds=(cost.seconds[0] * cost.size.outputs,)) for cost in linear]
    time_verdict, _ = judge_exponents("Adam", fit(with_outputs, SWEEPS), SWEEPS)
    assert time_verdict.holds is False
    assert "in d_z 1.00 ± 0.00 over 4 to 16 (stated 0: above)" in time_verdict.outcome


def test_the_speed_is_judged_by_the_faster_form_of_each_method() -> None:
    size = Size(1000, 32, 20)
    costs = [
        cost_at("TNGD, device", size, 0.1, 0.05),
        cost_at("TNGD, device, structured", size, 0.01, 0.001),
        cost_at("TNGD, emulator", size, 0.001),
        cost_at("NGD-CG", size, 1.0),
        cost_at("NGD-CG, structured", size, 0.8),
        cost_at("NGD-Woodbury", size, 3.0),
        cost_at("NGD-Woodbury, structured", size, 0.02),
    ]
    cg, woodbury = judge_speed("NGD-CG", costs), judge_speed("NGD-Woodbury", costs)
    assert (cg.holds, woodbury.holds) == (True, False)
    assert cg.outcome.startswith(
        "80× at N = 1,000, b = 32, d_z = 20, both in their faster form, and 10× in the paper's"
    )
    assert woodbury.outcome.startswith("2×")


def test_adam_is_compared_with_the_faster_device() -> None:
    mnist = {
        label: cost_at(label, complexity.MNIST, seconds, modelled)
        for label, seconds, modelled in (
            ("Adam", 0.01, 0.0),
            ("TNGD, device", 1.0, 0.04),
            ("TNGD, device, structured", 0.02, 0.001),
        )
    }
    verdict = judge_adam(mnist)
    assert verdict.holds is True
    assert "TNGD, device: 100× (1,000 ms, 960 of them on the host and 40 on the device)" in verdict.outcome
    assert "TNGD, device, structured: 2×" in verdict.outcome
    mnist["TNGD, device, structured"] = cost_at("TNGD, device, structured", complexity.MNIST, 0.03)
    assert judge_adam(mnist).holds is False


def test_more_model_calls_than_stated_refute_the_claim() -> None:
    assert judge_calls({"Adam": 1, "NGD-CG": 401}).holds is True
    assert judge_calls({"Adam": 1, "NGD-CG": 800}).holds is False


def test_every_method_is_in_both_plans_and_a_form_has_one_line_in_the_figure() -> None:
    for plan in (FULL, MINIATURE):
        assert set(plan.sweeps) == set(plan.figure) == set(METHODS)
    costs = [cost_at(label, size, 0.01) for label in METHODS for size in SWEEPS.parameters]
    figure = iteration_figure(costs, costs, title="T", fixed=("b = 8", "N = 100"), caption="C")
    lines = [
        (line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines if line.get_linestyle() != "None"
    ]
    assert len(set(lines)) == len(METHODS)
    assert [(axes.get_xscale(), axes.get_yscale()) for axes in figure.axes] == [("log", "log")] * 2


def test_the_miniature_writes_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [Size(200, 4, 3), Size(400, 4, 3)]
    sweeps = dict.fromkeys(METHODS, Sweeps(sizes, (), sizes[:1]))
    tiny = Plan(sweeps, sweeps, ("Adam", "TNGD, device, structured"), repeats=1, seconds_each=0.0)
    monkeypatch.setattr(complexity, "MINIATURE", tiny)
    complexity.run(tmp_path, "inproc:", Console(file=StringIO(), width=120), quick=True)
    lines = list(csv.DictReader((tmp_path / "complexity.csv").read_text().splitlines()))
    assert {line["method"] for line in lines} == set(METHODS)
    assert all(float(line["seconds"]) > 0.0 and int(line["bytes"]) > 0 for line in lines)
    calls = {line["method"]: int(line["calls"]) for line in lines if line["network"] == "perceptron"}
    assert (calls["Adam"], calls["K-FAC"], calls["TNGD, emulator"]) == (1, 2, 1)
    content = json.loads((tmp_path / "complexity.json").read_text())
    assert content["status"] == "finished"
    assert len(content["verdicts"]) == 2 * 6 + 5
    assert content["exponents"]["Adam"]["time in N"]["stated"] == 1
    table = (tmp_path / "complexity.md").read_text()
    assert all(verdict["sentence"] in table for verdict in content["verdicts"])
    assert (tmp_path / "complexity.png").stat().st_size > 10_000


def test_a_device_that_is_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotTaken, match="complexity measures devices"):
        complexity.run(tmp_path, "unix:/tmp/spu.sock", Console(file=StringIO()))
