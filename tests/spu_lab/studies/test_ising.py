"""The experiment with Ising chains: its exact energies, its files, and what it says without NetKet."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import netket as nk
import pytest
from rich.console import Console

from spu_lab.experiments import ising
from spu_lab.experiments.ising import Plan, Training
from spu_lab.result_folder import new_results
from spu_lab.studies.ising_chain import find_energy, find_ground_energy, make_hamiltonian
from tests.command_line import tngd, words
from tests.daemon import Daemon

SMALL = Plan(
    chains=(4,),
    seeds=(0, 1),
    iterations=20,
    adam_iterations=40,
    adam_rates=(0.001, 0.03),
    adam_every=10,
    samples=128,
    analog_time=500.0,
)


@pytest.mark.parametrize("field", [0.5, 1.0, 2.0])
def test_the_energy_of_free_fermions_is_that_of_exact_diagonalisation(field: float) -> None:
    (expected,) = nk.exact.lanczos_ed(make_hamiltonian(10, field))
    assert find_ground_energy(10, field) == pytest.approx(expected, rel=1e-10)


def test_the_energy_of_a_network_is_that_of_netkets_full_sum() -> None:
    hamiltonian = make_hamiltonian(5, 0.7)
    state = nk.vqs.FullSumState(hamiltonian.hilbert, nk.models.RBM(alpha=2, param_dtype=float), seed=0)
    state.parameters = {**state.parameters, "visible_bias": state.parameters["visible_bias"] + 0.3}
    assert find_energy(state, 0.7) == pytest.approx(float(state.expect(hamiltonian).mean), rel=1e-10)


def test_a_small_chain_gives_all_files(stepped: Daemon, tmp_path: Path) -> None:
    with new_results(tmp_path, "ising"):
        trainings = ising.reproduce(SMALL, tmp_path, stepped.address, Console(quiet=True))
    assert {path.name for path in tmp_path.iterdir()} == {f"ising.{kind}" for kind in ("csv", "json", "md", "png")}
    assert len(trainings) == 2 + 2 + 2 + 1  # the second learning rate of Adam is the better one

    rows = list(csv.DictReader((tmp_path / "ising.csv").read_text().splitlines()))
    assert len(rows) == 4 * 20 + 3 * 4
    ground = find_ground_energy(4, 1.0)
    for row in rows:
        assert float(row["energy"]) - ground == pytest.approx(float(row["relative_error"]) * abs(ground))
        assert float(row["relative_error"]) > 0.0

    content = json.loads((tmp_path / "ising.json").read_text())
    assert content["status"] == "finished"
    assert content["plan"]["analog_time"] == 500.0
    assert content["device"]["clock"] == "stepped"
    by_device, by_cholesky = (
        [t["iterations_to_target"] for t in content["trainings"] if t["method"] == method]
        for method in ("SPU", "NetKet's Cholesky")
    )
    # An error that comes close to the target may pass it an iteration apart.
    assert all(abs(mine - theirs) <= 1 for mine, theirs in zip(by_device, by_cholesky, strict=True))
    assert content["verdicts"][0]["holds"]
    assert all(verdict["sentence"] in (tmp_path / "ising.md").read_text() for verdict in content["verdicts"])


def trained(method: str, reached: int | None, end: int, lr: float = 0.05) -> Training:
    errors = {step: 1e-2 if reached is None or step < reached else 1e-4 for step in range(1, end + 1)}
    return Training(4, method, lr, 0, errors, -5.0)


@pytest.mark.parametrize(
    ("spu", "cholesky", "adam", "holds"),
    [
        (10, 10, 50, (True, True)),
        (11, 10, 54, (True, False)),
        (12, 10, None, (False, True)),
        (13, None, None, (True, False)),  # 5 · 13 > 60
        (None, None, None, (False, False)),
    ],
)
def test_the_verdict_is_that_of_the_counts(
    spu: int | None, cholesky: int | None, adam: int | None, holds: tuple[bool, bool]
) -> None:
    plan = replace(SMALL, seeds=(0,), iterations=20, adam_iterations=60)
    shown = {
        (4, ising.SPU): [trained(ising.SPU, spu, 20)],
        (4, ising.CHOLESKY): [trained(ising.CHOLESKY, cholesky, 20)],
        (4, ising.ADAM): [trained(ising.ADAM, adam, 60)],
    }
    assert tuple(verdict.holds for verdict in ising.judge(plan, 4, shown)) == holds


def test_without_netket_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "spu_lab.experiments.ising")
    monkeypatch.setitem(sys.modules, "netket", None)
    result = tngd("reproduce", "ising", "--out", str(tmp_path / "ising"))
    assert result.exit_code == 1
    assert words(result.stderr).strip() == (
        "SoftwareMissing: the experiment ising needs NetKet; install it: pip install 'tngd-spu[netket]'"
    )
