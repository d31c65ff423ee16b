"""A host's order to a device: operator, drive, damping, noise and start, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from spu_link.device_time import DeviceTime
from spu_link.operators import Damped, Dense, Operator
from spu_link.operators.base import ArrayLike, Role, as_operand, either, mismatch
from spu_link.precision import PRECISIONS, Precision, rounding
from spu_link.values import check_finite, check_range, check_semidefinite
from tngd.spu.v1 import spu_pb2 as pb

StartPolicy: TypeAlias = Literal["keep", "drive"]
"""Start of the state: its present value, or the drive."""


@dataclass(frozen=True)
class Reading:
    """A measured state of the device.

    Attributes:
        value: the state, or its average over the window; shape (N,), dtype of the program's drive.
        time: device time of the measurement, in τ, exactly as asked, but for a board, which says when it measured; a
            `DeviceTime`.
        sequence: number of the program in force at that time.
        age: how long that program had run by then, in τ.
        window: length of the average, in τ; 0 for the state itself.
        sent: device time at which the daemon sent the reading, in τ; `sent - time` is how stale it was by then.
        epoch: identity of the daemon's run; times of two epochs never compare.
    """

    value: Tensor
    time: float
    sequence: int
    age: float
    window: float
    sent: float
    epoch: int = 0

    def __post_init__(self) -> None:
        """Let the times know their epoch."""
        object.__setattr__(self, "time", DeviceTime(self.time, self.epoch))
        object.__setattr__(self, "sent", DeviceTime(self.sent, self.epoch))


@dataclass(frozen=True)
class Applied:
    """The instant a program took effect.

    Attributes:
        sequence: number of the program.
        time: device time, in τ; a `DeviceTime`.
        epoch: identity of the daemon's run; times of two epochs never compare.
    """

    sequence: int
    time: float
    epoch: int = 0

    def __post_init__(self) -> None:
        """Let the time know its epoch."""
        object.__setattr__(self, "time", DeviceTime(self.time, self.epoch))


@dataclass(frozen=True)
class Restored:
    """The instant from which a saved state goes on.

    Attributes:
        time: device time, in τ; a `DeviceTime`.
        shift: what it is later than the time at which the state was saved, in τ; negative on a device whose time is not
            that far.
        sequence: number of the program in force; 0 without one.
        epoch: identity of the daemon's run; times of two epochs never compare.
    """

    time: float
    shift: float
    sequence: int
    epoch: int = 0

    def __post_init__(self) -> None:
        """Let the time know its epoch."""
        object.__setattr__(self, "time", DeviceTime(self.time, self.epoch))


class Program:
    """dx = −((F + λI) x − b) ds + √(2κ₀) dW from a start state, s in τ.

    Args:
        operator: F over N cells; a `Damped` operator adds its λ to `damping`.
        drive: b, shape (N,), float32 or float64; readings come back in its dtype.
        damping: λ ≥ 0.
        noise: κ₀ ≥ 0.
        start: ``"keep"`` (go on from where the cells stand; cells not used before start at 0), ``"drive"`` (x = b) or a
            tensor of shape (N,).
        precision: how the operator's values travel, see `spu_link.precision`; None: as they are. Drive, start and
            readings keep their dtype.

    Raises:
        InvalidProgram: naming the first argument that is not what it must be. Values of tensors are not looked at here:
            see `check_values`.
    """

    def __init__(
        self,
        operator: Operator,
        drive: ArrayLike,
        *,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        precision: Precision | None = None,
    ) -> None:
        if not isinstance(operator, Operator):
            raise mismatch("operator", type(operator).__name__, "an operator such as spu_link.operators.Rows")
        if isinstance(operator, Damped):
            damping, operator = damping + operator.damping, operator.operator
        self.operator = operator
        self.damping = non_negative("damping", damping)
        self.noise = non_negative("noise", noise)
        self.drive = self._cells("drive", drive)
        self.start: StartPolicy | Tensor
        if isinstance(start, str):
            if start not in ("keep", "drive"):
                raise mismatch("start", repr(start), "'keep', 'drive' or a tensor")
            self.start = start
        else:
            self.start = self._cells("start", start)
        if precision is not None and precision not in PRECISIONS:
            raise mismatch(
                "precision", repr(precision), f"{either(map(repr, PRECISIONS))}, or None for values as they are"
            )
        self.precision = precision

    @property
    def cells(self) -> int:
        """N, the number of cells in use."""
        return self.operator.parameters

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on the wire."""
        start = self.start.nbytes if isinstance(self.start, Tensor) else 0
        operands = (tensor for _, tensors in self.operator.wire() for tensor in tensors.values())
        return sum(self._nbytes_of(operand) for operand in operands) + self.drive.nbytes + start

    def _nbytes_of(self, operand: Tensor) -> int:
        if self.precision is None or not operand.is_floating_point():
            return operand.nbytes
        return operand.numel() * PRECISIONS[self.precision].itemsize

    def _cells(self, field: str, value: ArrayLike) -> Tensor:
        tensor = as_operand(value, field=field, dimensions=1)
        if len(tensor) != self.cells:
            raise mismatch(field, f"of shape {tuple(tensor.shape)}", f"shape ({self.cells},), one value a parameter")
        return tensor

    def check_values(self) -> None:
        """Look at every value: all finite, indices in range, a dense matrix symmetric and positive semi-definite.

        Raises:
            InvalidProgram: naming the tensor and the first offending value.
        """
        self.check_operator()
        self.check_vectors()

    def check_operator(self) -> None:
        """Look at the operator's values alone, as `check_values` does."""
        for block, tensors in self.operator.wire():
            for role, tensor in tensors.items():
                field = tensor_name(block, role)
                if role == pb.ROLE_INDICES:
                    check_range(field, tensor, block.embedding.embeddings)
                else:
                    check_finite(field, tensor)
        if isinstance(self.operator, Dense):
            check_semidefinite("dense.matrix", self.operator.matrix, rounding(self.precision))

    def check_vectors(self) -> None:
        """Look at the values of drive and start alone, as `check_values` does."""
        check_finite("drive", self.drive)
        if isinstance(self.start, Tensor):
            check_finite("start", self.start)


def non_negative(field: str, value: float) -> float:
    """A finite number, at least 0.

    Raises:
        InvalidProgram: naming `field`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise mismatch(field, repr(value), "a finite number, at least 0")
    return float(value)


def tensor_name(block: pb.Block, role: Role) -> str:
    """Name of a tensor of an operator in errors, such as ``linear.input``."""
    return f"{block.WhichOneof('kind')}.{pb.Role.Name(role).removeprefix('ROLE_').lower()}"
