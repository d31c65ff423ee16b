"""The converters: digital to analog for drive and start, analog to digital for readings.

Signals are in volts here; `board.Scale` says how many volts one unit of the problem is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spu_server.analog.rounding import codes, round_to_codes
from spu_server.checks import positive


@dataclass(frozen=True)
class DigitalToAnalog:
    """The converters that make drive and start voltages.

    Source: uniform mid-tread quantiser, W. R. Bennett, Bell System Technical Journal 27 (1948) 446.
    """

    bits: int | None = None
    """Resolution; codes run from −(2^(bits−1) − 1) to 2^(bits−1) − 1. None: exact. Paper: 16."""

    range: float = math.inf
    """Largest output, V. What lies beyond is clipped, and counted. inf: no limit."""

    ranging: bool = True
    """Automatic ranging: the host scales each vector so that its largest value is the largest code, and an attenuator
    behind the converter undoes it. Nothing clips then, and small drives keep their bits. Without, one unit of the
    problem is 1 V."""

    def __post_init__(self) -> None:
        positive(self, "range")
        resolvable(self, self.bits, self.range, self.ranging)

    def convert(self, volts: Tensor, threshold: Tensor | float = 0.5) -> tuple[Tensor, int]:
        """Voltages as they come out, and how many were clipped.

        Args:
            volts: any shape.
            threshold: where a code rounds up, 0 to 1; see `rounding`.
        """
        largest = float(volts.abs().max()) if self.ranging else self.range
        return _convert(volts, largest, self.bits, threshold)


@dataclass(frozen=True)
class AnalogToDigital:
    """The converters that read the cells.

    Source: rounding as of `DigitalToAnalog`; noise and gain error as in IEEE Std 1241-2010, on terms and test methods
    for analog-to-digital converters.
    """

    bits: int | None = None
    """Resolution, as of the converters for the drive. None: exact. Paper: 16."""

    range: float = math.inf
    """Largest input, V. What lies beyond is clipped, and counted. inf: no limit."""

    noise: float = 0.0
    """Noise of one conversion, V rms at the input: thermal, quantisation of an inner stage, clock jitter. Data sheets
    give it as effective number of bits, ENOB = log2(range / (√3 · rms)) for bipolar inputs."""

    ranging: bool = True
    """A programmable-gain amplifier before the converter halves its range as long as the sampled vector fits."""

    gains: int = 16
    """Max number of halvings of the range by that amplifier: a gain of up to 2^gains."""

    mismatch: float = 0.0
    """Relative gain error of the channels, rms, fixed for each cell. Calibration measures it."""

    def __post_init__(self) -> None:
        positive(self, "range")
        resolvable(self, self.bits, self.range, self.ranging)

    def convert(self, volts: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """Voltages as they are read, and how many were clipped."""
        if self.noise:
            volts = volts + self.noise * torch.randn(volts.shape, dtype=volts.dtype, generator=generator)
        return _convert(volts, self._range_for(float(volts.abs().max())), self.bits, 0.5)

    def exact(self, volts: float) -> float:
        """The voltage nearest to this one that is read without rounding."""
        if self.bits is None:
            return volts
        largest = self._range_for(volts)
        return float(round_to_codes(torch.tensor(volts, dtype=torch.float64), largest, self.bits))

    def _range_for(self, largest: float) -> float:
        if not self.ranging or largest <= 0.0 or largest >= self.range:
            return self.range
        if math.isinf(self.range):
            return largest
        return self.range * 0.5 ** min(self.gains, math.floor(math.log2(self.range / largest)))


def _convert(volts: Tensor, largest: float, bits: int | None, threshold: Tensor | float) -> tuple[Tensor, int]:
    clipped = int((volts.abs() > largest).sum())
    if clipped:
        volts = volts.clamp(-largest, largest)
    if bits is None or largest == 0.0:
        return volts, clipped
    return round_to_codes(volts, largest, bits, threshold), clipped


def resolvable(part: object, bits: int | None, largest: float, ranging: bool) -> None:
    """Refuse bits that leave no code, or that have no finite range to divide.

    Raises:
        ValueError: saying which.
    """
    if bits is None:
        return
    codes(bits)
    if largest == float("inf") and not ranging:
        raise ValueError(f"{type(part).__name__} has {bits} bits, but neither a finite range for them nor ranging")
