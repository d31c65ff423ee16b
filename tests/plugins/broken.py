"""A driver that breaks in the way that is asked for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from spu_link.program import Program
from spu_server.drivers.base import DriverOptions, Measured
from spu_server.drivers.emulator import Emulator


class Broken(Emulator):
    """An emulator that breaks ``how=…``, or once in each way that is a line of ``file=…``, one after the other."""

    def __init__(self, options: DriverOptions) -> None:
        super().__init__(options.model_copy(update={"settings": {}}))
        self._how = options.settings.get("how", "")
        self._file = Path(options.settings.get("file", os.devnull))
        self._lies = False
        self._calibrations = 0
        if self._breaks("open"):
            raise RuntimeError("the cells are not there")

    def _breaks(self, how: str) -> bool:
        if self._how == how:
            return True
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        first, *others = lines or [""]
        if first != how:
            return False
        if others:
            self._file.write_text("\n".join(others))
        else:
            self._file.unlink()
        return True

    def stage(self, program: Program) -> None:
        if self._breaks("hang in stage"):
            time.sleep(3600.0)
        super().stage(program)

    def prepare(self) -> None:
        if self._breaks("exception in prepare"):
            raise RuntimeError("the oven is cold")
        super().prepare()

    def read(self, at: float, window: int | None) -> Tensor | Measured:
        if self._breaks("segfault"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._breaks("hang"):
            time.sleep(3600.0)
        if self._breaks("spin"):
            while True:
                pass
        if self._breaks("poll"):
            while True:
                time.sleep(0.001)
        if self._breaks("announced"):
            self.announce(2.0)
            time.sleep(2.0)
        if self._breaks("exception"):
            raise RuntimeError("the converter is on fire")
        value = super().read(at, window)
        if self._breaks("nan"):
            value[0] = torch.nan
        if self._breaks("short"):
            value = value[:-1]
        if self._breaks("wrong dtype"):
            value = value.to(torch.float16)
        return value

    def clock(self) -> float | None:
        self._lies = self._lies or self._breaks("clock lies")
        return time.monotonic() * (1.5 if self._lies else 1.0)

    def schedule(self, readings: Sequence[tuple[float, float]]) -> None:
        if self._breaks("exception in schedule"):
            raise RuntimeError("no slot")

    def self_test(self) -> str:
        return "the reference voltage is gone" if self._breaks("self-test") else ""

    def calibrate(self) -> None:
        if self._breaks("calibration"):
            raise RuntimeError("the offsets are out of reach")
        self._calibrations += 1

    def report(self) -> dict[str, float]:
        return {"calibrations": float(self._calibrations)}
