"""Faults of a line: errors of bits, and frames that are lost or doubled."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class LineFaults:
    """Rates of a line's faults, in each direction.

    Attributes:
        bit_errors: chance that a bit is turned over.
        lost: chance that a frame (what lies between two zero bytes) is lost.
        doubled: chance that a frame arrives twice.
        latency: seconds that everything takes longer.
    """

    bit_errors: float = 0.0
    lost: float = 0.0
    doubled: float = 0.0
    latency: float = 0.0


class BadLine:
    """One way of a line: bytes in, bytes out.

    Args:
        faults: how bad it is.
        seed: of its mischief.
    """

    def __init__(self, faults: LineFaults, seed: int) -> None:
        self._faults = faults
        self._random = random.Random(seed)
        self._begun = b""

    def pass_through(self, data: bytes) -> bytes:
        """Return the part of `data` that arrives. The last frame is held back until its zero has come."""
        *frames, self._begun = (self._begun + data).split(b"\0")
        return b"".join(self._frame(frame + b"\0") for frame in frames)

    def _frame(self, frame: bytes) -> bytes:
        chance = self._random.random
        if len(frame) > 1 and chance() < self._faults.lost:
            return b""
        copies = 2 if len(frame) > 1 and chance() < self._faults.doubled else 1
        return b"".join(self._with_errors(frame) for _ in range(copies))

    def _with_errors(self, frame: bytes) -> bytes:
        if not self._faults.bit_errors:
            return frame
        out = bytearray(frame)
        for bit in range(8 * len(out)):
            if self._random.random() < self._faults.bit_errors:
                out[bit // 8] ^= 1 << bit % 8
        return bytes(out)
