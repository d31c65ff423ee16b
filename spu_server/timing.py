"""Time and energy that a device of the paper would need for the emulator's work, in seconds and joules.

The times are the paper's own model (arXiv 2405.13817, the section on runtime): a link of 50 Gb/s, 16 bits a value,
resistors programmed by their codes, R = 1 kΩ and C = 1 nF so that τ = 1 µs. It gives no conversion times and no
energies; those here are *ours*, with their sources, and are rough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spu_link.operators import FactorOperator, Operator
from spu_link.program import Program
from spu_server.checks import positive


@dataclass(frozen=True)
class Timing:
    """Time and energy of uploads, conversions and analog evolution.

    Source: arXiv 2405.13817 for the times of link, resistors and evolution; the rest is ours, see each field.
    """

    link: float = 50e9
    """Rate of the digital link, bit/s. Paper: 50 Gb/s."""

    bits: int = 16
    """Bits a value on the link, and of a conversion. Paper: 16."""

    arrays: Literal["factors", "paper"] = "factors"
    """Which resistors are programmed: the elements of the upload's factors, once for A and once for Aᵀ; or the paper's
    m (m + 2N), for J, H and Jᵀ held element by element."""

    converters: int = 0
    """Converters that work side by side, each for N / converters cells in turn. 0: one a cell. Not in the paper."""

    sample: float = 1e-6
    """Time of one conversion, s. Not in the paper; 1 MS/s at 16 bits is a usual successive-approximation part."""

    link_energy: float = 5e-12
    """Energy a bit on the link, J. Ours: 5 pJ/bit, a usual serial link over a board."""

    conversion_energy: float = 1e-13
    """Energy of one conversion for each of its 2^bits steps, J. Ours: Walden's figure of merit (IEEE J. Sel. Areas
    Commun. 17 (1999) 539), 100 fJ a step as in surveys of parts of that speed."""

    resistance: float = 1e3
    """Of one resistor, Ω. Paper: 1 kΩ."""

    volts: float = 1e-3
    """Rms voltage across a resistor, V. Ours: at 1 V, 1e8 resistors of 1 kΩ would take 100 kW."""

    hold: bool = False
    """True if the driver holds an upload back until its modelled time has passed on the wall clock."""

    def __post_init__(self) -> None:
        positive(self, "link", "resistance")

    def resistors(self, operator: Operator) -> int:
        """Return the number of resistors that an operator takes."""
        if not isinstance(operator, FactorOperator):
            return operator.parameters**2
        m, n = operator.shape
        if self.arrays == "paper":
            return m * (m + 2 * n)
        return 2 * sum(operand.numel() for operand in operator.operands if operand.is_floating_point())

    def upload_seconds(self, program: Program, *, kept: bool = False) -> float:
        """Time to send and set resistors and drive, s; with `kept`, the drive alone."""
        return self._uploaded_bits(program, kept) / self.link

    def conversion_seconds(self, cells: int) -> float:
        """Time to convert one vector, s."""
        return self.sample * (-(-cells // self.converters) if self.converters else 1)

    def reading_seconds(self, cells: int) -> float:
        """Time to send one reading back, s."""
        return cells * self.bits / self.link

    def upload_joules(self, program: Program, *, kept: bool = False) -> float:
        """Energy of an upload with the conversion of its drive, J."""
        return self.link_energy * self._uploaded_bits(program, kept) + self._conversion_joules(program.cells)

    def reading_joules(self, cells: int) -> float:
        """Energy of one reading, J."""
        return self.link_energy * self.bits * cells + self._conversion_joules(cells)

    def watts(self, operator: Operator) -> float:
        """Power that the resistors turn into heat while the cells move, W: V²/R each."""
        return self.resistors(operator) * self.volts**2 / self.resistance

    def _uploaded_bits(self, program: Program, kept: bool) -> int:
        return self.bits * (program.cells + (0 if kept else self.resistors(program.operator)))

    def _conversion_joules(self, cells: int) -> float:
        return float(self.conversion_energy * 2**self.bits * cells)


PARTS = ("upload_seconds", "conversion_seconds", "analog_seconds", "reading_seconds")
"""Parts of the time of a solve."""


class Ledger:
    """Modelled time and energy of what has been asked of a device since it was opened.

    Args:
        timing: the device.
        tau: time constant, s.

    Attributes:
        numbers: ``uploads`` and ``readings``; time for them in s, ``upload_seconds``, ``conversion_seconds`` and
            ``reading_seconds``; ``analog_seconds``, from the instant when a program takes effect to its last reading;
            and the energy of all that, ``joules``. What cells do after the last reading is not counted.
    """

    def __init__(self, timing: Timing, tau: float) -> None:
        self.numbers = {"uploads": 0.0, "readings": 0.0, "joules": 0.0} | dict.fromkeys(PARTS, 0.0)
        self._timing = timing
        self._tau = tau
        self._since = 0.0  # device time until which the running program has been counted
        self._watts = 0.0

    def upload(self, program: Program, *, kept: bool) -> float:
        """Enter an upload with the conversion of its drive, and give its time in s; `kept`: the drive comes alone."""
        seconds = self._timing.upload_seconds(program, kept=kept)
        self.numbers["uploads"] += 1
        self.numbers["upload_seconds"] += seconds
        self.numbers["conversion_seconds"] += self._timing.conversion_seconds(program.cells)
        self.numbers["joules"] += self._timing.upload_joules(program, kept=kept)
        return seconds

    def run(self, operator: Operator, at: float) -> None:
        """Enter that a program with this operator has taken effect at the device time `at`, in τ."""
        self._since, self._watts = at, self._timing.watts(operator)

    def read(self, cells: int, at: float, *, copies: int = 1) -> None:
        """Enter a reading of the running program at the device time `at`, in τ; of `copies` that run side by side."""
        seconds, self._since = (at - self._since) * self._tau, at
        self.numbers["readings"] += 1
        self.numbers["analog_seconds"] += seconds
        self.numbers["conversion_seconds"] += self._timing.conversion_seconds(cells) * copies
        self.numbers["reading_seconds"] += self._timing.reading_seconds(cells) * copies
        self.numbers["joules"] += self._timing.reading_joules(cells) * copies + self._watts * seconds
