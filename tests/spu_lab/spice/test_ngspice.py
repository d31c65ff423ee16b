"""Simulated circuits follow the law of the device; a missing or failing ngspice is one clear error."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from spu_lab import cli
from spu_lab.catalogue import SoftwareMissing
from spu_lab.experiments import circuit
from spu_lab.result_folder import new_results, read_json, results_in
from spu_lab.spice.comparison import covariance
from spu_lab.spice.measurements import emulated, settled_in_circuit
from spu_lab.spice.netlist import Network, OpAmp, Transient
from spu_lab.spice.ngspice import SimulationFailed, read_table, run, simulate
from spu_lab.spice.prediction import mean, settled
from spu_lab.studies.study import DeviceNotTaken
from tests.statistics import assert_standard_normal, whiten

needs_ngspice = pytest.mark.skipif(shutil.which("ngspice") is None, reason="ngspice is not installed here")


def network(cells: int, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(cells, cells))
    drive, start = rng.normal(size=(2, cells))
    return Network(rows.T @ rows / cells, 0.3, drive, start)


@needs_ngspice
@pytest.mark.parametrize("cells", [1, 2, 4])
def test_without_noise_the_circuit_follows_the_emulator(cells: int) -> None:
    given = network(cells, seed=cells)
    done = simulate(given, Transient(5.0, 0.005)).nearest(np.linspace(0.0, 5.0, 11))
    np.testing.assert_allclose(done.states[:, 0], emulated(given, done.times), rtol=0.0, atol=2e-5)


@needs_ngspice
def test_with_noise_the_circuit_has_the_mean_and_the_covariance_of_the_law() -> None:
    given = replace(network(2), noise=0.01)
    done = simulate(given, Transient(1.5, 0.05, copies=150, seed=3)).nearest(np.array([0.5, 1.5]))
    np.testing.assert_allclose(done.times, [0.5, 1.5], atol=1e-9)
    for time, states, centre in zip(done.times, done.states, mean(given, done.times), strict=True):
        assert_standard_normal(whiten(states, centre, covariance(given, time)))


@needs_ngspice
def test_a_seed_gives_the_same_noise_again_and_another_one_other_noise() -> None:
    given = replace(network(2), noise=0.01)
    first, again, other = (simulate(given, Transient(0.5, 0.05, seed=seed)).states[-1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


@needs_ngspice
@pytest.mark.parametrize("gain", [30.0, 1e4, math.inf])
def test_gain_and_offsets_of_all_amplifiers_change_the_end_as_the_closed_form_says(gain: float) -> None:
    offsets = 1e-3 * np.random.default_rng(1).normal(size=(2, 3))
    given = replace(network(3), amplifier=OpAmp(gain), offsets=offsets)
    assert given.inverted.any()
    np.testing.assert_allclose(settled_in_circuit(given), settled(given), rtol=1e-6, atol=1e-7)


@needs_ngspice
def test_a_pole_slows_the_circuit_down_as_the_closed_form_says_to_first_order() -> None:
    left = []
    for bandwidth in (3e7, 3e8):
        given = replace(network(3), amplifier=OpAmp(bandwidth=bandwidth))
        done = simulate(given, Transient(3.0, 0.005)).nearest(np.linspace(0.2, 3.0, 15))
        error = np.abs(done.states[:, 0] - mean(replace(given, amplifier=OpAmp()), done.times)).max()
        left.append(float(np.abs(done.states[:, 0] - mean(given, done.times)).max()) / error)
    assert left[0] < 0.2
    assert left[1] < 0.2 * left[0]


@needs_ngspice
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("* no circuit\nX1 a 0 nonsense\n.tran 1n 1u\n.end\n", "nonsense"),
        (
            "* no state\nB1 a 0 V = v(b) > 0 ? -1 : 1\nR1 a b 1\nC1 b 0 1f\n.tran 1n 1u uic\n.end\n",
            "Timestep too small",
        ),
    ],
)
def test_an_error_of_ngspice_is_shown_in_its_words(text: str, said: str) -> None:
    with pytest.raises(SimulationFailed, match=f"(?s)ngspice ended with exit code 1.*{said}"):
        run(text, deadline=30.0)


@needs_ngspice
def test_a_simulation_that_takes_too_long_is_ended() -> None:
    with pytest.raises(SimulationFailed, match=r"did not end within 0\.2 s"):
        simulate(network(3), Transient(1e6, 0.001), deadline=0.2)


def test_what_is_not_a_whole_table_is_refused() -> None:
    head = b"Flags: real\nNo. Variables: 2\nNo. Points: 3\nBinary:\n"
    assert read_table(head + np.arange(6.0).tobytes()).tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    with pytest.raises(SimulationFailed, match="40 bytes of a table of 3 × 2 numbers"):
        read_table(head + np.arange(5.0).tobytes())
    with pytest.raises(SimulationFailed, match="not a binary table"):
        read_table(head.replace(b"Binary", b"Values"))


def test_without_ngspice_the_command_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SoftwareMissing, match="no program named ngspice"):
        simulate(network(1), Transient(1.0, 0.1))
    result = CliRunner().invoke(
        cli.app, ["reproduce", "circuit", "--out", str(tmp_path / "out")], env={"COLUMNS": "400"}
    )
    assert result.exit_code == 1
    assert result.output.startswith(
        "SoftwareMissing: there is no program named ngspice on the path; install it: `apt-get"
    )
    assert result.output.count("\n") == 1


def test_the_experiment_makes_its_own_devices(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotTaken, match="leave out --spu"):
        circuit.run(tmp_path, "unix:/tmp/spu.sock", Console(quiet=True))


@needs_ngspice
def test_the_experiment_leaves_tables_a_picture_and_a_netlist_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit, "MINIATURE", replace(circuit.MINIATURE, copies=4))
    with new_results(tmp_path, "circuit"):
        circuit.run(tmp_path, None, Console(quiet=True), quick=True)
    assert {path.name for path in results_in(tmp_path)} == {
        f"circuit.{end}" for end in ("csv", "md", "json", "png", "cir")
    }
    content = read_json(tmp_path / "circuit.json")
    assert content["status"] == "finished"
    verdicts = {verdict["claim"]: verdict["holds"] for verdict in content["verdicts"]}
    assert verdicts["Without noise the circuit follows the emulator within 1e-05 V"]
    assert verdicts["The closed form predicts the error of finite gain within 20%"]
    assert not verdicts["The input offset of an op-amp acts as the driver's offsets.input within 20%"]
    assert all(verdict["sentence"] in (tmp_path / "circuit.md").read_text() for verdict in content["verdicts"])
    assert run((tmp_path / "circuit.cir").read_text(), deadline=30.0).shape[1] == 4
