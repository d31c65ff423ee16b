"""A language model that computes its loss itself trains through a daemon."""

from __future__ import annotations

from examples import tiny_language_model
from tests.daemon import Daemon


def test_a_language_model_with_its_loss_inside_learns_by_monte_carlo_curvature(stepped: Daemon) -> None:
    losses = tiny_language_model.main(["--spu", stepped.address, "--steps", "60"])
    assert len(losses) == 60
    assert sum(losses[-5:]) / 5 < 2.4, losses  # 3.5 is that of a uniform distribution, 2.9 that of letter frequencies
