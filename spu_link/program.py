"""A host's order to a device: operator, drive, damping, noise, start and schedule, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from spu_link.device_time import DeviceTime
from spu_link.errors import either, mismatch
from spu_link.names import StartPolicy as StartPolicy
from spu_link.operators import Dense, Operator
from spu_link.operators.base import as_operand
from spu_link.precision import PRECISIONS, Precision, rounding
from spu_link.values import check_finite, check_range, check_semidefinite


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
        shift: its difference from the time of saving, in τ; negative on a device whose time is not that far.
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


@dataclass(frozen=True)
class ReadPlan:
    """A reading to take under a program.

    Attributes:
        after: device time from the instant the program takes effect, in τ.
        window: average over the last `window` τ before it; 0 for the state itself.
    """

    after: float
    window: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """When a program takes effect, how long it runs, and when it is read.

    Attributes:
        reads: the readings to take, in the order of their times.
        length: by how much a stepped clock is moved under the program, in τ: at least to the last reading; before, it
            is moved to `not_before`. None: it is not moved.
        not_before: earliest device time at which it may take effect, in τ; None for now.
    """

    reads: Sequence[ReadPlan] = ()
    length: float | None = None
    not_before: float | None = None


@dataclass(frozen=True, eq=False)
class Program:
    """dx = −((F + λI) x − b) ds + √(2κ₀) dW from a start state, s in τ.

    Attributes:
        operator: F over N cells.
        drive: b, shape (N,), float32 or float64; readings come back in its dtype.
        damping: λ ≥ 0.
        noise: κ₀ ≥ 0.
        start: ``"keep"`` (go on from the cells' state; cells not used before start at 0), ``"drive"`` (x = b) or
            a tensor of shape (N,).
        precision: how the operator's values travel, see `spu_link.precision`; None: as they are. Drive, start and
            readings keep their dtype.
        schedule: when it takes effect and is read. It is the device that keeps it: a driver has no use for it.

    Raises:
        InvalidProgram: naming the first argument that is not what it must be. Values of tensors are not looked at here:
            see `check_values`.
    """

    operator: Operator
    drive: Tensor
    _: KW_ONLY
    damping: float = 0.0
    noise: float = 0.0
    start: StartPolicy | Tensor = "keep"
    precision: Precision | None = None
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        """Check, and make numbers and tensors of what can be one."""
        if not isinstance(self.operator, Operator):
            raise mismatch("operator", type(self.operator).__name__, "an operator such as spu_link.operators.Rows")
        object.__setattr__(self, "damping", non_negative("damping", self.damping))
        object.__setattr__(self, "noise", non_negative("noise", self.noise))
        object.__setattr__(self, "drive", self._cells("drive", self.drive))
        if not isinstance(self.start, str):
            object.__setattr__(self, "start", self._cells("start", self.start))
        elif self.start not in ("keep", "drive"):
            raise mismatch("start", repr(self.start), "'keep', 'drive' or a tensor")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise mismatch(
                "precision", repr(self.precision), f"{either(map(repr, PRECISIONS))}, or None for values as they are"
            )

    @property
    def cells(self) -> int:
        """N, the number of cells in use."""
        return self.operator.parameters

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on the wire."""
        start = self.start.nbytes if isinstance(self.start, Tensor) else 0
        return sum(self._nbytes_of(operand) for operand in self.operator.operands) + self.drive.nbytes + start

    def _nbytes_of(self, operand: Tensor) -> int:
        if self.precision is None or not operand.is_floating_point():
            return operand.nbytes
        return operand.numel() * PRECISIONS[self.precision].itemsize

    def _cells(self, field: str, value: Tensor) -> Tensor:
        tensor = as_operand(value, field=field, dimensions=(1,))
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
        for block in self.operator.to_blocks():
            for role, tensor in block.tensors.items():
                if role == "indices":
                    check_range(f"{block.kind}.{role}", tensor, block.geometry["embeddings"])
                else:
                    check_finite(f"{block.kind}.{role}", tensor)
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
