"""A physics-informed network of 257 parameters reaches the accuracy that Adam takes thousands of steps for."""

from __future__ import annotations

import pytest

from examples import poisson_pinn
from tests.daemon import Daemon

TARGET = 3e-4


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_a_poisson_equation_is_solved_in_35_steps(stepped: Daemon, seed: int) -> None:
    errors = poisson_pinn.main(["--spu", stepped.address, "--steps", "35", "--seed", str(seed)])
    assert list(errors) == [seed]
    assert len(errors[seed]) == 35
    assert errors[seed][0] > 0.1
    assert errors[seed][-1] < TARGET, errors[seed]


def test_the_example_starts_a_free_running_daemon_and_shows_the_errors(capsys: pytest.CaptureFixture[str]) -> None:
    errors = poisson_pinn.main(["--steps", "25", "--seed", "1"])
    assert min(errors[1]) < TARGET, errors[1]
    lines = capsys.readouterr().out.splitlines()
    assert any("step size" in line for line in lines)
    assert lines[-2].split()[:3] == ["seed", "step", "10"]
    assert "below 3e-04" in lines[-2]


def test_adam_is_far_from_there_after_as_many_steps(capsys: pytest.CaptureFixture[str]) -> None:
    errors = poisson_pinn.main(["--optimizer", "adam", "--steps", "100"])
    assert min(errors[0]) > 100 * TARGET, errors[0]
    assert capsys.readouterr().out.splitlines()[-1].endswith("never")
