"""The operator that a device already holds."""

from __future__ import annotations

from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from spu_link.errors import InvalidProgram, mismatch
from spu_link.operators.base import BlockOperator, Geometry, Shapes


class Kept(BlockOperator):
    """Stands for the operator of a program that the device runs, or ran under the same operator as now.

    Nothing of it travels, and the device keeps what it has computed of it:

        applied = session.program(operator, b, damping=0.01)
        reading = session.solve(Kept(applied.sequence, operator.parameters), c, damping=0.01, analog_time=50.0)

    Programs that keep an operator may follow each other, and each of them may be named for it, the first one too. The
    device refuses it (`OperatorGone`) once a program with another operator has taken effect, and after a halt or a
    restart.

    Args:
        sequence: number of the program, as in `Applied.sequence` or `Reading.sequence`; at least 1.
        parameters: N, the number of its parameters (cells); at least 1.

    Raises:
        InvalidProgram: for another number.
    """

    kind = "kept"
    fields = ("sequence", "parameters")
    dimensions: ClassVar = {}

    def __init__(self, sequence: int, parameters: int) -> None:
        for field, value in (("kept.sequence", sequence), ("kept.parameters", parameters)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 63:
                raise mismatch(field, repr(value), "a whole number, at least 1")
        self.sequence = sequence
        self._shape = parameters, parameters
        self.tensors = {}

    @property
    def dtype(self) -> torch.dtype:
        """Known to the device alone."""
        self._elsewhere()

    def curvature(self, v: Tensor) -> Tensor:
        """F v: the device's business."""
        self._elsewhere()

    def dense(self) -> Tensor:
        """F: held by the device alone."""
        self._elsewhere()

    @classmethod
    def shape_of(cls, geometry: Geometry, shapes: Shapes) -> tuple[int, int]:
        """Shape (N, N), from the numbers alone."""
        return cls(**geometry).shape

    def __repr__(self) -> str:
        """Which program's operator, and its size."""
        return f"Kept({self.sequence}, {self.parameters})"

    def _elsewhere(self) -> NoReturn:
        raise InvalidProgram(
            f"the values of {self!r} lie in the device; only it can multiply with them",
            field="operator",
            found=repr(self),
            expected="an operator whose values are here",
        )
