"""What a host asks of a device: operator, drive, damping, noise and start, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.operators import Damped, Dense, Operator
from spu_link.operators.base import ArrayLike, Role, as_operand, mismatch
from tngd.spu.v1 import spu_pb2 as pb

StartPolicy: TypeAlias = Literal["keep", "drive"]
"""Where the state starts: where it stands, or at the drive."""


@dataclass(frozen=True)
class Reading:
    """A measured state of the device.

    Attributes:
        value: the state, or its average over the window; shape (N,), dtype of the program's drive.
        time: device time of the measurement, in τ, exactly as asked.
        sequence: number of the program in force at that time.
        age: how long that program had run by then, in τ.
        window: length of the average, in τ; 0 for the state itself.
        sent: device time at which the daemon sent the reading, in τ; `sent - time` is how stale it was by then.
    """

    value: Tensor
    time: float
    sequence: int
    age: float
    window: float
    sent: float


@dataclass(frozen=True)
class Applied:
    """The instant a program took hold.

    Attributes:
        sequence: number of the program.
        time: device time, in τ.
    """

    sequence: int
    time: float


class Program:
    """dx = −((F + λI) x − b) ds + √(2κ₀) dW from a start state, s in τ.

    Args:
        operator: F over N cells; a `Damped` operator adds its λ to `damping`.
        drive: b, shape (N,), float32 or float64; readings come back in its dtype.
        damping: λ ≥ 0.
        noise: κ₀ ≥ 0.
        start: ``"keep"`` (go on from where the cells stand; cells not used before start at 0), ``"drive"`` (x = b) or a
            tensor of shape (N,).

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

    @property
    def cells(self) -> int:
        """N, the number of cells in use."""
        return self.operator.parameters

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        start = self.start.nbytes if isinstance(self.start, Tensor) else 0
        return self.operator.nbytes + self.drive.nbytes + start

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
        for block, tensors in self.operator.wire():
            for role, tensor in tensors.items():
                field = f"{block.WhichOneof('kind')}.{_role_name(role)}"
                if role == pb.ROLE_INDICES:
                    _check_range(field, tensor, block.embedding.embeddings)
                else:
                    _check_finite(field, tensor)
        _check_finite("drive", self.drive)
        if isinstance(self.start, Tensor):
            _check_finite("start", self.start)
        if isinstance(self.operator, Dense):
            _check_semidefinite(self.operator.matrix)


def non_negative(field: str, value: float) -> float:
    """A finite number, at least 0.

    Raises:
        InvalidProgram: naming `field`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise mismatch(field, repr(value), "a finite number, at least 0")
    return float(value)


def _role_name(role: Role) -> str:
    return pb.Role.Name(role).removeprefix("ROLE_").lower()


def _check_finite(field: str, tensor: Tensor) -> None:
    # aminmax is one pass without a temporary, and passes NaN on.
    low, high = torch.aminmax(tensor)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise _bad_value(field, tensor, ~torch.isfinite(tensor), "finite")


def _check_range(field: str, indices: Tensor, end: int) -> None:
    low, high = torch.aminmax(indices)
    if low < 0 or high >= end:
        raise _bad_value(field, indices, (indices < 0) | (indices >= end), f"at least 0 and less than {end}")


def _bad_value(field: str, tensor: Tensor, bad: Tensor, expected: str) -> InvalidProgram:
    """The error for the first of the bad values."""
    where = tuple(torch.nonzero(bad)[0].tolist())
    value = tensor[where].item()
    return InvalidProgram(
        f"{field}{list(where)} is {value}; every value must be {expected}",
        field=field,
        found=value,
        expected=f"{expected} values" if expected == "finite" else expected,
    )


def _check_semidefinite(matrix: Tensor) -> None:
    f = matrix.to(torch.float64)
    # What rounding alone can do to a matrix product of this size and dtype.
    tolerance = max(len(f), 64) * torch.finfo(matrix.dtype).eps * float(f.abs().max())
    asymmetry = float((f - f.T).abs().max())
    if asymmetry > tolerance:
        raise mismatch("dense.matrix", f"asymmetric by {asymmetry:.3g}", "a symmetric matrix")
    shifted = f + tolerance * torch.eye(len(f), dtype=torch.float64, device=f.device)
    if not bool(torch.linalg.cholesky_ex(shifted).info):
        return  # a fraction of what eigenvalues cost
    least = float(torch.linalg.eigvalsh(f)[0])
    if least < -tolerance:
        raise mismatch("dense.matrix", f"indefinite, with eigenvalue {least:.3g}", "a positive semi-definite matrix")
