"""A driver that breaks one rule of the conformance suite at a time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from spu_link.operators import Dense
from spu_link.program import Program
from spu_server.drivers.base import Capabilities, DriverOptions, Measured
from spu_server.drivers.emulator import Emulator
from spu_server.dynamics import transition_of


class Nonconforming(Emulator):
    """An emulator that breaks the rule whose name is written in ``file=…``."""

    def __init__(self, options: DriverOptions) -> None:
        super().__init__(options)
        self._file = Path(options.settings["file"])
        self._lock = Path(options.settings["file"] + ".lock")
        if self._lock.exists():
            raise RuntimeError("the line is still held")

    def _breaks(self, how: str) -> bool:
        return self._file.read_text() == how

    @property
    def capabilities(self) -> Capabilities:
        stated = replace(super().capabilities, name="abacus" if self._breaks("name") else "nonconforming")
        return replace(stated, features=("dense", "window")) if self._breaks("accepts everything") else stated

    def stage(self, program: Program) -> None:
        if self._breaks("forgets damping") and not isinstance(program.operator, Dense):
            program = replace(program, damping=0.0)
        if self._breaks("starts at zero") and program.start == "drive":
            program = replace(program, start=torch.zeros_like(program.drive))
        if self._breaks("too noisy"):
            program = replace(program, noise=2.0 * program.noise)
        if self._breaks("slow with noise") and program.noise:
            slower = Dense(0.5 * program.operator.dense())
            program = Program(slower, 0.5 * program.drive, noise=0.5 * program.noise, start=program.start)
        super().stage(program)
        if self._breaks("stages into the running program") and self._running is not None:
            self._running = self._staged

    def read(self, at: float, window: int | None) -> Tensor | Measured:
        if self._breaks("reads nothing") and self._running is None:
            return torch.zeros(1)
        if self._breaks("closes no window") and window is not None:
            kept = replace(self._windows[window])
            value = super().read(at, window)
            self._windows[window] = kept
            return value
        if self._breaks("averages nothing"):
            self.close_window(window if window is not None else -1)
            return super().read(at, None)
        value = super().read(at, window)
        if self._breaks("wrong dtype"):
            return value.to(torch.float64)
        if self._breaks("wrong time"):
            return Measured(value, at + 0.1)
        return value

    def commit(self, at: float) -> None:
        super().commit(at)
        if self._breaks("too fast") and isinstance(self._running.program.operator, Dense):
            program = self._running.program
            faster = Program(Dense(1.05 * program.operator.dense()), 1.05 * program.drive, noise=1.05 * program.noise)
            self._running = replace(self._running, transition=transition_of(faster))

    def halt(self, at: float) -> None:
        if self._breaks("slow to halt") and self._running is not None:
            time.sleep(0.5)
        state = self._state
        super().halt(at)
        if self._breaks("halts charged"):
            self._state = state

    def clock(self) -> float | None:
        return 1.01 * time.monotonic() if self._breaks("clock") else None

    def self_test(self) -> str:
        return "the oven is cold" if self._breaks("self-test") else ""

    def close(self) -> None:
        if self._breaks("keeps the line"):
            self._lock.touch()
        super().close()
