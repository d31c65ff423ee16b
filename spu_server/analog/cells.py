"""Errors of the cells: thermal noise, finite gain, offsets, slow drift.

All are linear in the state or independent of it, so the dynamics stay exact. What is left out is said with each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from spu_server.checks import positive

BOLTZMANN = 1.380649e-23
"""k in J/K, exact since the SI of 2019."""


@dataclass(frozen=True)
class Thermal:
    """Thermal noise of the cells' capacitors.

    A cell with F = 1 that is left alone has the variance kT/C, and the stationary variance of dx = −x ds + √(2κ) dW is
    κ: so κ = kT/C in V². At 300 K and 1 nF that is (2.0 µV)². Source: Nyquist, Phys. Rev. 32 (1928) 110.
    """

    temperature: float = 0.0
    """Of the resistors, K. 0: no thermal noise."""

    capacitance: float = 1e-9
    """Of one cell, F. Paper: 1 nF."""

    def __post_init__(self) -> None:
        positive(self, "capacitance")

    @property
    def variance(self) -> float:
        """KT/C, V²."""
        return BOLTZMANN * self.temperature / self.capacitance


@dataclass(frozen=True)
class Amplifier:
    """The operational amplifiers that sum currents into the capacitors.

    With the open-loop gain G the virtual ground is off by v/G, and through the summed conductance g (in units of 1/R)
    the cell leaks g/(1 + G) in units of 1/τ. That is damping in addition to λ. τ also grows by the factor 1 + 1/G, the
    same for all cells, which is left out; so are poles of the amplifier itself. Source: Sedra & Smith, "Microelectronic
    Circuits", on the effect of finite gain on the Miller integrator.
    """

    gain: float = math.inf
    """Open-loop gain at low frequency. Usual: 1e4 to 1e6."""

    conductance: float = 1.0
    """Sum of all conductances at a cell's input, in units of 1/R: Σⱼ |Fᵢⱼ| + λ, and 1 for the drive's resistor. All
    cells have the same one here, 1 unless it is set."""

    @property
    def leak(self) -> float:
        """Return the addition to the damping, 1/τ."""
        return 0.0 if math.isinf(self.gain) else self.conductance / (1.0 + self.gain)


@dataclass(frozen=True)
class Offsets:
    """Voltages that are there without a signal, different from cell to cell.

    Source: the input offset voltage in data sheets of operational amplifiers; for the 1/f drift see `flicker`.
    """

    input: float = 0.0
    """Offset of the drive, V rms over the cells. Calibration measures it. Trimmed amplifiers have 1e-5 to 1e-3 at their
    inputs, each of which counts as often as `Amplifier.conductance` says."""

    output: float = 0.0
    """Offset of the reading, V rms over the cells. Calibration measures it."""

    flicker: float = 0.0
    """1/f drift of the input offset: V rms in each decade of frequency. A sum of one Ornstein–Uhlenbeck process a
    decade, whose spectrum is 1/f within 6 % between the slowest and the fastest (McWhorter, "1/f noise and germanium
    surface properties", 1957). It is held constant while one program runs, so frequencies above 1 / (time of a
    program) have no effect on the motion within it."""

    slowest: float = 1e3
    """Longest correlation time of the 1/f drift, s."""

    fastest: float = 1e-3
    """Shortest correlation time of the 1/f drift, s."""

    def __post_init__(self) -> None:
        positive(self, "slowest", "fastest")

    @property
    def correlation_times(self) -> list[float]:
        """Of the processes that make up the 1/f drift, one a decade, s."""
        decades = max(1, round(math.log10(self.slowest / self.fastest)))
        return [self.fastest * (self.slowest / self.fastest) ** (j / decades) for j in range(decades + 1)]


@dataclass(frozen=True)
class GainDrift:
    """Slow loss of calibration: the gain of each reading channel does a random walk.

    Source: ours, the simplest process that leaves a calibration further behind the longer it was ago.
    """

    rate: float = 0.0
    """Relative rms change of a channel's gain after one second; after s seconds it is √s times that. Temperature
    coefficients of 10 ppm/K and 1 K an hour come to about 2e-7."""
