"""A device in software that is as inexact as a real one: the emulator behind a board's converters and arrays."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spu_link.errors import NoProgram, mismatch
from spu_link.operators import Dense, FactorOperator, Operator
from spu_link.program import Program
from spu_server.analog.breadboard import ResistorNetwork
from spu_server.analog.channels import Channels
from spu_server.analog.hardware import AnalogBoard
from spu_server.analog.nonsymmetric import DenseDrift, drift_of
from spu_server.analog.presets import PRESETS, preset
from spu_server.analog.rounding import Dither
from spu_server.drivers.base import Capabilities, Driver, DriverOptions
from spu_server.drivers.emulator import FEATURES, Emulator
from spu_server.dynamics import Motion, motion_of
from spu_server.dynamics.effort import max_seconds
from spu_server.timing import Ledger

PRESET = "preset"
"""Name of the setting that chooses the board; all others are fields of it."""

DRIVE, START = 1_000_001, 1_000_002
"""Places of the dither of drive and start, behind those of an operator's tensors."""


@dataclass(frozen=True)
class _Arrays:
    """An operator as the arrays for A and Aᵀ hold it, one pair for each rounding."""

    pairs: tuple[tuple[Operator, Operator], ...]


@dataclass(frozen=True)
class _Loaded:
    """A program on the board: volts per unit of its problem, and how the cells of each copy move."""

    program: Program
    arrays: _Arrays
    motions: tuple[Motion, ...]
    scale: float


class Analog(Driver):
    """The emulator behind a board (`spu_server.analog`).

    With the board ``ideal`` every call goes to the emulator as it is, and readings are the same to the bit. Otherwise
    a program's operator is rounded and mismatched, drive and start go through converters, noise is added, and readings
    come back through converters. Several roundings (`board.Averaging`) run side by side, each in an emulator of its
    own.

    Raises:
        ValueError: for a preset or setting that does not exist, or cannot be.
    """

    def __init__(self, options: DriverOptions) -> None:
        settings = dict(options.settings)
        self.board: AnalogBoard = preset(settings.pop(PRESET, "ideal")).with_settings(settings)
        if self.board.timing.hold and options.clock == "stepped":
            raise ValueError("timing.hold holds uploads back in wall time; a stepped clock does not run meanwhile")
        self._options = options
        self._tau = self.board.tau or options.tau
        self._compute = torch.device(options.compute)
        roundings = self.board.averaging.roundings
        self._cells = [
            Emulator(options.model_copy(update={"seed": (options.seed + j) % 2**63, "settings": {}}))
            for j in range(roundings)
        ]
        for cells in self._cells:
            cells.announce = self._announce
        self._dither = Dither(roundings, options.seed)
        self._generator = torch.Generator().manual_seed((options.seed + 2**62) % 2**63)
        self._channels = Channels(self.board, options.seed, self._generator)
        self._staged: _Loaded | None = None
        self._running: _Loaded | None = None
        self._ledger = Ledger(self.board.timing, self._tau)
        self._time = 0.0

    @classmethod
    def discover(cls) -> list[dict[str, str]]:
        """The presets."""
        return [{PRESET: name} for name in PRESETS]

    @property
    def capabilities(self) -> Capabilities:
        """The emulator's, with the board's number of cells."""
        cells = self._options.cells if self.board.cells is None else min(self.board.cells, self._options.cells)
        # Without "state": a board's voltages cannot be set to the bit.
        return Capabilities("analog", cells, self._options.max_bytes, FEATURES, tau=self.board.tau)

    def stage(self, program: Program) -> None:
        """Take a program in as the arrays hold it; with `timing.hold`, not before its modelled time has gone by.

        Raises:
            InvalidProgram: when the board is a soldered network and the program's matrix is not the network's.
        """
        began = time.monotonic()
        running = self._running
        kept = running is not None and running.program.operator is program.operator
        if self.board.ideal:
            self._staged = _Loaded(program, _Arrays(()), (), 1.0)
            self._cells[0].stage(program)
        else:
            seconds = len(self._cells) * max_seconds(program.operator, self._compute.type)
            self.announce(seconds + self._channels.max_seconds(program.cells, calibrate=True))
            self._staged = self._load(program, running if kept else None)
        seconds = self._ledger.upload(program, kept=kept)
        if self.board.timing.hold:
            slowdown = 1.0 if self._options.rate is None else 1.0 / (self._options.rate * self._tau)
            left = max(0.0, began + slowdown * seconds - time.monotonic())
            self.announce(left)
            time.sleep(left)

    def commit(self, at: float) -> None:
        """Apply the staged program at `at`; offsets stay as they are at that time until the next program.

        Raises:
            NoProgram: when none is staged.
        """
        staged = self._staged
        if staged is None:
            raise NoProgram("no program is staged", field="program")
        seconds = self._pass(at)
        if staged.motions:
            offset = self._channels.offset(staged.program.cells, seconds) / staged.scale
            for motion in staged.motions:
                motion.drive.add_(offset.to(motion.drive.device))
        for cells in self._cells:
            cells.commit(at)
            if math.isfinite(self.board.rails.volts):
                self._channels.clipped["rail"] += cells.limit(self.board.rails.volts / staged.scale)
        self._ledger.run(staged.program.operator, at)
        self._running, self._staged = staged, None

    def prepare(self) -> None:
        """Compute what every step under the running program needs."""
        for cells in self._cells:
            cells.prepare()

    def open_window(self, window: int, start: float) -> None:
        """Begin a time average."""
        self._pass(start)
        for cells in self._cells:
            cells.open_window(window, start)

    def close_window(self, window: int) -> None:
        """Forget a time average, if it is open."""
        for cells in self._cells:
            cells.close_window(window)

    def read(self, at: float, window: int | None) -> Tensor:
        """State at `at`, or a time average, as the board's converters give it.

        A window's average is converted once, at its end; a rail that is touched on the way is not seen.

        Raises:
            NoProgram, ReadInPast: as `Emulator.read`.
        """
        values = [cells.read(at, window) for cells in self._cells]
        seconds = self._pass(at)
        assert self._running is not None  # else nothing could be read
        self._ledger.read(len(values[0]), at, copies=len(values))
        if self.board.ideal:
            return values[0]
        scale = self._running.scale
        read = sum((self._channels.read(value * scale, seconds) for value in values), torch.zeros_like(values[0]))
        return (read / (len(values) * scale)).to(self._running.program.drive.dtype)

    def halt(self, at: float) -> None:
        """Drop all programs and windows and discharge the cells."""
        self._pass(at)
        for cells in self._cells:
            cells.halt(at)
        self._staged = self._running = None

    def close(self) -> None:
        """Release every tensor."""
        for cells in self._cells:
            cells.close()
        self._staged = self._running = None

    def calibrate(self) -> None:
        """Measure offsets and gains now; programs that follow are corrected by what is found."""
        self.announce(self._channels.max_seconds(self._channels.cells, calibrate=True))
        self._channels.calibrate()

    def report(self) -> dict[str, float]:
        """Return counts and measurements since the board was opened.

        Returns:
            ``dac_clipped``, ``adc_clipped``, ``rail_clipped``: values that were clipped, by where; and what the
            ``Ledger`` of the board's timing holds.
        """
        return {f"{where}_clipped": float(n) for where, n in self._channels.clipped.items()} | self._ledger.numbers

    def _announce(self, seconds: float) -> None:
        """Return the message of one of the copies, which work one after the other, each for itself."""
        self.announce(seconds)

    def _load(self, program: Program, running: _Loaded | None) -> _Loaded:
        """The program as the board holds it; `running` if that one's operator serves on."""
        channels, board = self._channels, self.board
        channels.use(program.cells, self._time * self._tau)
        scale = self._scale_for(program)
        arrays = running.arrays if running is not None else self._program_arrays(program.operator)
        damping = program.damping + board.amplifier.leak
        noise = program.noise + board.thermal.variance / scale**2
        if board.network is not None:
            noise += board.network.noise / scale**2
        drive, start = program.drive.to(torch.float64), program.start
        motions = []
        for number, (cells, (forward, backward)) in enumerate(zip(self._cells, arrays.pairs, strict=True)):
            converted = channels.convert_drive(drive * scale, self._threshold(drive, number, DRIVE)) / scale
            begun: Literal["keep"] | Tensor = "keep"
            if start != "keep":
                volts = scale * (drive if isinstance(start, str) else start.to(torch.float64))
                begun = channels.convert_start(volts, self._threshold(drive, number, START)) / scale
            held = Program(forward, converted, damping=damping, noise=noise, start=begun)
            former = running.motions[number] if running is not None else None
            motion = self._motion(held, backward, former)
            cells.stage(held, motion)
            motions.append(motion)
        return _Loaded(program, arrays, tuple(motions), scale)

    def _motion(self, program: Program, backward: Operator, former: Motion | None) -> Motion:
        operator = program.operator
        as_asked = self.board.programming.exact and self.board.network is None
        if former is not None or as_asked or (isinstance(operator, FactorOperator) and backward is operator):
            return motion_of(program, self._compute, former)
        law = {"damping": program.damping, "noise": program.noise}
        if isinstance(operator, FactorOperator) and isinstance(backward, FactorOperator):
            return drift_of(operator, backward, program.drive, **law, compute=self._compute)
        return DenseDrift(operator.dense(), program.drive.clone(), **law)  # rounded, it need not be semi-definite

    def _program_arrays(self, operator: Operator) -> _Arrays:
        """Return the operator as each copy's arrays hold it."""
        if self.board.network is not None:
            soldered = _soldered_matrix(self.board.network, operator)
            return _Arrays(((soldered, soldered),) * len(self._cells))
        programming, seed = self.board.programming, self._options.seed
        return _Arrays(tuple(programming.arrays(operator, seed, self._dither, j) for j in range(len(self._cells))))

    def _scale_for(self, program: Program) -> float:
        """Volts per unit: chosen anew with a start that is given, else as it is."""
        if self._running is not None and isinstance(program.start, str) and program.start == "keep":
            return self._running.scale
        drive = float(program.drive.abs().max())
        start = float(program.start.abs().max()) if isinstance(program.start, Tensor) else drive
        return self.board.rails.scale(drive, start, program.damping)

    def _threshold(self, drive: Tensor, number: int, place: int) -> Tensor | float:
        return self._dither.threshold(drive.shape, number, place)

    def _pass(self, at: float) -> float:
        """Account for the time up to `at`; the same in seconds."""
        self.announce(self._channels.max_seconds(self._channels.cells))
        self._time = max(self._time, at)
        return self._time * self._tau


def _soldered_matrix(network: ResistorNetwork, operator: Operator) -> Dense:
    """Return the network's own matrix, if it is what the operator asks for."""
    matrix = torch.from_numpy(network.matrix)
    asked = operator.curvature(torch.eye(operator.parameters, dtype=torch.float64))
    if asked.shape != matrix.shape or (asked - matrix).norm() > network.tolerance * matrix.norm():
        raise mismatch(
            "operator",
            f"F = {[[round(float(f), 4) for f in row] for row in asked[:2, :2]]} over {operator.parameters} cells",
            f"the matrix soldered on the board, {[[round(float(f), 4) for f in row] for row in matrix]}, within "
            f"{network.tolerance:.0%}, without damping besides",
        )
    return Dense(matrix)
