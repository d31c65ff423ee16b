"""The picture of the simulated circuit: states, covariances, and what gain and bandwidth of the amplifiers do."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spu_lab.spice.comparison import covariance
from spu_lab.spice.measurements import Deviation, Noisy
from spu_lab.spice.netlist import Network
from spu_lab.spice.ngspice import Trajectory
from spu_lab.spice.prediction import mean
from spu_lab.studies.panels import ARMS, LEGEND
from spu_lab.training.report import INK, MUTED, dress, plain_logarithmic

PREDICTIONS: dict[str, dict[str, Any]] = {
    "driver": {"color": "#e69f00", "linestyle": "-"},
    "driver, conductance 1": {"color": "#009e73", "linestyle": "--"},
    "closed form": {"color": INK, "linestyle": ":"},
}
"""Lines of the predictions, by name."""

SHOWN = 8.0
"""Time up to which states and covariances are drawn, τ."""


def circuit_figure(
    network: Network,
    quiet: Trajectory,
    noisy: Noisy,
    gains: Sequence[Deviation],
    bandwidths: Sequence[Deviation],
    *,
    caption: str,
) -> Figure:
    """Draw four panels; lines are the law or the driver, markers the circuit.

    Args:
        network: with noise.
        quiet: without noise, one copy.
        noisy: with noise.
        gains, bandwidths: errors of imperfect amplifiers.
        caption: what a reader must know.
    """
    figure = Figure(figsize=(11.0, 8.0), dpi=110, layout="constrained", facecolor="white")
    title = "Op-amp integrators in ngspice, and the Ornstein–Uhlenbeck law"
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    (states, spreads), (gain, bandwidth) = figure.subplots(2, 2)
    _draw_states(states, network, quiet, noisy.whole)
    _draw_covariances(spreads, network, noisy.snapshots)
    _draw_deviations(gain, gains, "Stationary error against gain", "DC gain A₀ of the op-amps", 1.0)
    _draw_deviations(
        bandwidth, bandwidths, "Largest error on the way against bandwidth", "gain-bandwidth product, MHz", 1e-6
    )
    figure.supxlabel(textwrap.fill(caption, width=150), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _draw_states(axes: Axes, network: Network, quiet: Trajectory, noisy: Trajectory) -> None:
    times = np.linspace(0.0, SHOWN, 300)
    expected = mean(network, times)
    spread = np.sqrt([np.diag(covariance(network, time)) for time in times])
    marked = quiet.nearest(np.linspace(0.0, SHOWN, 17))
    walk = noisy.times <= SHOWN
    for cell in range(network.cells):
        colour, marker = ARMS[cell]
        low, high = expected[:, cell] - 2.0 * spread[:, cell], expected[:, cell] + 2.0 * spread[:, cell]
        axes.fill_between(times, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(noisy.times[walk], noisy.states[walk, 0, cell], color=colour, alpha=0.5, linewidth=0.7)
        axes.plot(times, expected[:, cell], color=colour, linewidth=1.6)
        name = f"x{'₁₂₃₄₅₆'[cell]}"
        axes.plot(marked.times, marked.states[:, 0, cell], marker, color=colour, markersize=5, label=name)
    dress(axes, "States: law ± 2σ, circuit without noise (markers) and with")
    axes.set_xlabel("time t, τ", color=MUTED)
    axes.set_ylabel("voltage, V", color=MUTED)
    axes.legend(**LEGEND | {"loc": "center", "bbox_to_anchor": (0.7, 0.4), "ncols": 3})


def _draw_covariances(axes: Axes, network: Network, snapshots: Trajectory) -> None:
    times = np.linspace(0.0, SHOWN, 300)
    law = np.array([covariance(network, time) for time in times])
    centred = snapshots.states - mean(network, snapshots.times)[:, None]
    copies = centred.shape[1]
    found = np.einsum("tki,tkj->tij", centred, centred) / copies
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    for (colour, marker), (i, j) in zip(ARMS, pairs, strict=True):
        exact = np.array([covariance(network, time) for time in snapshots.times])
        error = np.sqrt((exact[:, i, i] * exact[:, j, j] + exact[:, i, j] ** 2) / copies)
        axes.plot(times, 1e3 * law[:, i, j], color=colour, linewidth=1.6)
        axes.errorbar(
            snapshots.times,
            1e3 * found[:, i, j],
            1e3 * error,
            fmt=marker,
            color=colour,
            markersize=4,
            linewidth=1.0,
            label=f"Σ{'₁₂₃'[i]}{'₁₂₃'[j]}",
        )
    dress(axes, f"Covariance: law, and {copies} circuits ± standard error")
    axes.set_xlabel("time t, τ", color=MUTED)
    axes.set_ylabel("covariance, 10⁻³ V²", color=MUTED)
    axes.legend(**LEGEND | {"loc": "lower left", "ncols": 2})


def _draw_deviations(axes: Axes, deviations: Sequence[Deviation], title: str, label: str, unit: float) -> None:
    settings = [unit * deviation.setting for deviation in deviations]
    for name in deviations[0].expected:
        values = [deviation.expected[name] for deviation in deviations]
        axes.plot(settings, values, **PREDICTIONS[name], linewidth=1.6, label=name)
    circuit = [deviation.circuit for deviation in deviations]
    axes.plot(settings, circuit, "o", color="#0072b2", markersize=6, label="circuit")
    axes.set_xscale("log")
    dress(axes, title)
    plain_logarithmic(axes)
    axes.set_xlabel(label, color=MUTED)
    axes.set_ylabel("relative error", color=MUTED)
    axes.legend(**LEGEND)
