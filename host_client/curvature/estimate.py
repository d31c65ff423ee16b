"""The bytes that a curvature takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """Bytes that a curvature takes from the loss to the solution.

    Attributes:
        host: in the host's memory: operands, cotangents of the criterion's input, drive and reading. For a model on an
            accelerator, pinned copies of the operands and the drive, and the reading.
        accelerator: in the accelerator's memory: operands, cotangents and drive; zero for a model on the CPU.
        link: operands, in the precision they are sent in, and drive.
        device: operands, three s × s matrices, s = min(m, N) (Gram matrix AAᵀ or AᵀA, eigenvectors, workspace) and ten
            vectors of length N in float64, as the emulator works. Of devices smaller than the problem: of the largest
            program.
    """

    host: int
    accelerator: int
    link: int
    device: int
