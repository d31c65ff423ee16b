"""Plots for people."""

import pytest
from matplotlib.figure import Figure

from spu_lab.training.report import PlainTicks, plain_logarithmic


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.15, 2.4, [0.2, 0.5, 1, 2]),
        (0.03, 11.0, [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]),
        (1.2, 2.3, [1.2, 1.4, 1.6, 1.8, 2.0, 2.2]),
        (1e-4, 1e6, [10.0**power for power in range(-4, 7)]),
    ],
)
def test_a_logarithmic_axis_has_ticks_over_its_whole_length(low: float, high: float, ticks: list[float]) -> None:
    assert PlainTicks().tick_values(low, high) == pytest.approx(ticks)


def test_labels_are_the_values_of_their_ticks() -> None:
    axes = Figure().subplots()
    axes.plot([1, 2], [1.15, 2.3])
    plain_logarithmic(axes)
    labels = axes.yaxis.get_ticklabels(which="both")
    assert [float(label.get_text()) for label in labels] == pytest.approx(axes.get_yticks())
    assert len(labels) >= 5
