"""From a program to what a board's converters can hold.

The cells' voltages v = x / scale lie between −1 and 1, with a scale chosen before the program is sent: without noise
‖x‖ stays below ‖x₀‖ + ‖b‖/λ_min, and the noise adds a standard deviation of at most √(κ₀/λ_min) to each cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spu_link.errors import CapacityExceeded, InvalidProgram, UnsupportedBlock
from spu_link.operators import Dense
from spu_link.program import Program
from spu_server.board.registers import BANK_HEADER, FULL_SCALE, Start

HEADROOM = 8.0
"""Factor from a program's own bound to its scale where the next program may keep the scale, but not change it."""

TIGHT = 1.01
"""The same where the program brings its own start."""

SIGMAS = 6.0
"""Standard deviations of noise that fit: beyond lies one value in 5·10⁸."""


@dataclass(frozen=True)
class Bank:
    """A program as the board gets it.

    Attributes:
        data: the bytes of the bank.
        scale: value of x at full scale.
        cells: cells in use.
        dtype: of readings.
    """

    data: bytes
    scale: float
    cells: int
    dtype: torch.dtype

    @property
    def check(self) -> int:
        """CRC-32C of the bytes."""
        return int(google_crc32c.value(self.data))

    def value(self, codes: bytes) -> Tensor:
        """The state that a measurement's codes stand for."""
        volts = np.frombuffer(codes, dtype="<i2", count=self.cells).astype(np.float64) / FULL_SCALE
        return torch.from_numpy(volts * self.scale).to(self.dtype)


def bank_of(program: Program, cells: int, held: float | None) -> Bank:
    """Couplings, drive and start in codes, with the value of one code.

    Cells that are not in use get a coupling to themselves alone, and no drive.

    Args:
        program: what is asked for.
        cells: cells of the board.
        held: scale of the voltages that the cells hold; None while they are discharged.

    Raises:
        InvalidProgram: when the couplings are not definite in codes, or the state may leave the range that is held.
    """
    if not isinstance(program.operator, Dense):
        raise UnsupportedBlock(
            f"the board takes dense programs; this one is {program.operator.kind}",
            field="operator",
            found=program.operator.kind,
            expected="dense",
        )
    n = program.cells
    if n > cells:
        raise CapacityExceeded(
            f"the program uses {n} cells; the board has {cells}", field="cells", found=n, expected=f"at most {cells}"
        )
    couplings = np.eye(cells)
    couplings[:n, :n] = program.operator.dense().to(torch.float64).numpy() + program.damping * np.eye(n)
    coupling_code, coupling_codes = _encode(couplings)
    smallest = float(np.linalg.eigvalsh(coupling_codes * coupling_code)[0])
    if smallest <= coupling_code:
        raise InvalidProgram(
            f"in codes of {coupling_code:.3g} / τ the smallest eigenvalue of F + λI is {smallest:.3g} / τ: the cells "
            "would not settle; raise the damping",
            field="damping",
            found=program.damping,
            expected="F + λI definite beyond one code",
        )
    drive = np.zeros(cells)
    drive[:n] = program.drive.to(torch.float64).numpy()
    start = np.zeros(cells)
    if isinstance(program.start, Tensor):
        start[:n] = program.start.to(torch.float64).numpy()
    elif program.start == "drive":
        start = drive
    rest = float(np.linalg.norm(drive)) / smallest + SIGMAS * math.sqrt(program.noise / smallest)
    keeps = isinstance(program.start, str) and program.start == "keep"
    if keeps and held is not None:
        if rest > held:
            raise InvalidProgram(
                f"under this program the state may reach {rest:.3g}, and the cells hold theirs at {held:.3g} full "
                "scale; give a start, which lets the board choose its range anew",
                field="start",
                found="keep",
                expected="'drive' or a tensor",
            )
        scale = held
    else:
        scale = HEADROOM * rest if keeps else TIGHT * (rest + float(np.linalg.norm(start)))
        scale = scale or 1.0  # nothing drives the cells
    drive_code, drive_codes = _encode(drive / scale)
    header = BANK_HEADER.pack(
        Start.KEEP if keeps else Start.CODES, 0, coupling_code, drive_code, program.noise / scale**2
    )
    start_codes = np.round(start / scale * FULL_SCALE)
    codes = np.concatenate([coupling_codes.ravel(), drive_codes, start_codes]).astype("<i2")
    return Bank(header + codes.tobytes(), scale, n, program.drive.dtype)


def _encode(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return the value of one code, which float32 holds exactly, and the codes."""
    code = float(np.nextafter(np.float32(np.abs(values).max() / FULL_SCALE), np.float32(np.inf)))
    return code, np.round(values / code)
