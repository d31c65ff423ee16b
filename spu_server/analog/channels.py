"""The analog channels of the cells in use: their errors, how they drift, and what calibration knows of them.

Everything is in volts. A channel's errors are fixed by the device's seed and its index, whatever the number of cells
in use.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spu_server.analog.hardware import AnalogBoard
from spu_server.dynamics.functions import at, diffusion

BLOCK = 1 << 16
"""Channels whose errors are drawn at a time."""

MAX_VOLTS = 1.0
"""Largest voltage that a calibration takes for the range of a board without rails, V."""

SETTLE = 40.0
"""Time that a known problem is given, in τ: e⁻⁴⁰ = 4e-18."""


class Channels:
    """Errors of the channels of N cells.

    Args:
        board: what kind of errors.
        seed: of those that are fixed.
        generator: draws what varies in time.

    Attributes:
        cells: N, 0 before the first use.
        clipped: values that have been clipped so far, by where.
    """

    def __init__(self, board: AnalogBoard, seed: int, generator: torch.Generator) -> None:
        self._board = board
        self._seed = seed
        self._generator = generator
        self._seconds = 0.0
        self._calibrated_at = -math.inf
        self._calibrating = bool(board.calibration.readings)
        self.cells = 0
        empty = torch.zeros(0, dtype=torch.float64)
        self._offset_in = self._offset_out = self._gain = empty
        self._flicker = torch.zeros(len(board.offsets.correlation_times), 0, dtype=torch.float64)
        self._known_in = self._known_out = self._known_gain = empty
        self.clipped = {"dac": 0, "adc": 0, "rail": 0}

    def use(self, cells: int, seconds: float) -> None:
        """Have at least so many channels at the time `seconds`, calibrated where that has been asked for."""
        self._pass(seconds)
        if cells > self.cells:
            self._grow(cells)
        if self._calibrating and seconds - self._calibrated_at >= self._board.calibration.every:
            self.calibrate()

    def convert_drive(self, volts: Tensor, threshold: Tensor | float) -> Tensor:
        """Return the drive that the converters make of one asked for, less the offset that calibration knows."""
        converted, clipped = self._board.dac.convert(volts - self._known_in[: len(volts)], threshold)
        self.clipped["dac"] += clipped
        return converted

    def convert_start(self, volts: Tensor, threshold: Tensor | float) -> Tensor:
        """Return the start voltages that the converters make of those asked for."""
        converted, clipped = self._board.dac.convert(volts, threshold)
        self.clipped["dac"] += clipped
        return converted

    def offset(self, cells: int, seconds: float) -> Tensor:
        """Return the addition to the drive at the time `seconds`."""
        self._pass(seconds)
        return self._offset_in[:cells] + self._flicker[:, :cells].sum(0)

    def read(self, volts: Tensor, seconds: float) -> Tensor:
        """Return the readings of the cells' voltages at the time `seconds`, corrected by the last calibration."""
        self._pass(seconds)
        n = len(volts)
        beyond = int((volts.abs() > self._board.rails.volts).sum())
        if beyond:
            self.clipped["rail"] += beyond
            volts = volts.clamp(-self._board.rails.volts, self._board.rails.volts)
        seen = (1.0 + self._gain[:n]) * volts + self._offset_out[:n]
        converted, clipped = self._board.adc.convert(seen, self._generator)
        self.clipped["adc"] += clipped
        return (converted - self._known_out[:n]) / (1.0 + self._known_gain[:n])

    def calibrate(self) -> None:
        """Measure offsets and gains on four known problems, each read as often as the board says, at least once.

        Discharged cells show the reading's offset. With no array connected, F = 0 and λ = 1, cells settle at their
        drive plus its offset: without a drive they show the offset, at the amplifier's highest gain that holds it, and
        half of the difference between the drives +c and −c shows the reading's gain. c is a value that the converters
        give exactly, so that their rounding is not taken for gain. No device time passes. Flicker is measured with the
        offset, as it stands. Channels that come into use later are calibrated then.
        """
        self._calibrating = True
        n = self.cells
        if not n:
            return
        readings = max(1, self._board.calibration.readings)
        for known in (self._known_in, self._known_out, self._known_gain):
            known.zero_()
        zero = torch.zeros(n, dtype=torch.float64)
        level = self._board.adc.exact(0.4 * min(self._board.rails.volts, self._board.adc.range, MAX_VOLTS))
        out = sum((self.read(zero, self._seconds) for _ in range(readings)), zero) / readings
        plus, minus, none = (self._read_settled(drive, readings) for drive in (level, -level, 0.0))
        self._known_out = out
        self._known_gain = (plus - minus) / (2.0 * level) - 1.0
        self._known_in = (none - out) / (1.0 + self._known_gain)
        self._calibrated_at = self._seconds

    def max_seconds(self, cells: int, *, calibrate: bool = False) -> float:
        """Return the max time that so many channels may take a computer, in seconds: about ten times what they do.

        Args:
            cells: how many.
            calibrate: to calibrate them, else to convert or to drift.
        """
        return 1e-6 * cells * (4 * max(1, self._board.calibration.readings) if calibrate else 4)

    def _grow(self, cells: int) -> None:
        offsets, adc = self._board.offsets, self._board.adc
        new = cells - self.cells
        self._offset_in = offsets.input * self._draw_fixed(0, cells)
        self._offset_out = offsets.output * self._draw_fixed(1, cells)
        # What has drifted stays; channels not used before start from their own mismatch.
        self._gain = torch.cat([self._gain, adc.mismatch * self._draw_fixed(2, cells)[self.cells :]])
        self._flicker = torch.cat([self._flicker, offsets.flicker * self._draw(len(self._flicker), new)], 1)
        zeros = torch.zeros(new, dtype=torch.float64)
        self._known_in, self._known_out, self._known_gain = (
            torch.cat([known, zeros]) for known in (self._known_in, self._known_out, self._known_gain)
        )
        self.cells = cells
        self._calibrated_at = -math.inf

    def _pass(self, seconds: float) -> None:
        """Continue drifts to the time `seconds`."""
        passed = seconds - self._seconds
        if passed <= 0.0:
            return
        self._seconds = seconds
        offsets, drift = self._board.offsets, self._board.drift
        if offsets.flicker and self.cells:
            for state, correlation in zip(self._flicker, offsets.correlation_times, strict=True):
                kept = math.exp(-passed / correlation)
                spread = offsets.flicker * math.sqrt(-math.expm1(-2.0 * passed / correlation))
                state.mul_(kept).add_(self._draw(self.cells), alpha=spread)
        if drift.rate and self.cells:
            self._gain.add_(self._draw(self.cells), alpha=drift.rate * math.sqrt(passed))

    def _read_settled(self, level: float, readings: int) -> Tensor:
        """Return the mean reading of cells that have settled at the drive `level` with λ = 1 alone."""
        n = self.cells
        damping = 1.0 + self._board.amplifier.leak
        spread = math.sqrt(self._board.thermal.variance) * at(diffusion, damping, SETTLE)
        drive = self.convert_drive(torch.full((n,), level, dtype=torch.float64), 0.5)
        total = torch.zeros(n, dtype=torch.float64)
        for _ in range(readings):
            state = (drive + self.offset(n, self._seconds)) / damping
            if spread:
                state = state + spread * self._draw(n)
            total += self.read(state, self._seconds)
        return total / readings

    def _draw_fixed(self, kind: int, cells: int) -> Tensor:
        blocks = []
        for block in range(-(-cells // BLOCK)):
            generator = torch.Generator().manual_seed((self._seed * 7_919 + kind * 104_729 + block * 1_299_709) % 2**63)
            blocks.append(torch.randn(BLOCK, generator=generator, dtype=torch.float64))
        return torch.cat(blocks)[:cells]

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64)
