"""What a network with imperfect amplifiers settles at, and how much slower it is, in closed form.

With g the sums of conductances at the summing nodes, F⁻ the elements that go through inverters, as positive numbers, A₀
the gain, v and w the offsets of cells' and inverters' amplifiers, the currents into the summing nodes give

    (F' + λI + diag(g)/A₀) x = b + g ∘ v − 2 (F⁻ w)/(1 + 2/A₀)

where in F' the elements with inverters are divided by 1 + 2/A₀. To first order in ε = 1/(2π GBW τ) the motion is

    (I + ε (diag(g) + 2F⁻ − F − λI)) dx/ds = −((F + λI) x − b),

from x₀ + ε ((F + λI) x₀ − b), because the voltage that the summing node takes within ε is missing in the output.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from spu_lab.spice.netlist import IDEAL_GAIN, TAU, Network


def settled(network: Network) -> NDArray[np.float64]:
    """Return the stationary mean of a network, with the gain and the offsets of its amplifiers, shape (N,), V."""
    gain = min(network.amplifier.gain, IDEAL_GAIN)
    short = 1.0 + 2.0 / gain
    matrix = network.matrix + network.inverted * (1.0 - 1.0 / short) + np.diag(network.conductances) / gain
    cells, inverters = np.zeros((2, network.cells)) if network.offsets is None else network.offsets
    drive = network.drive + network.conductances * cells - 2.0 * (network.inverted @ inverters) / short
    state: NDArray[np.float64] = np.linalg.solve(matrix, drive)
    return state


def mean(network: Network, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean at times in τ, shape (times, N), V: the OU law, with what a pole changes to first order in 1/GBW.

    Gain and offsets are taken as ideal. Of no use within a few 1/(2π GBW) of the start.
    """
    lag = 1.0 / (2.0 * math.pi * network.amplifier.bandwidth * TAU)  # 0 without a pole
    slower = np.eye(network.cells) + lag * (np.diag(network.conductances) + 2.0 * network.inverted - network.matrix)
    start = network.start + lag * (network.matrix @ network.start - network.drive)
    rates, vectors = np.linalg.eig(np.linalg.solve(slower, network.matrix))
    end = np.linalg.solve(network.matrix, network.drive)
    modes = np.linalg.solve(vectors, start - end)
    moved: NDArray[np.float64] = end + np.real((np.exp(-np.outer(times, rates)) * modes) @ vectors.T)
    return moved
