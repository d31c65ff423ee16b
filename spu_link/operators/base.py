"""The operator interface, and what all factor operators share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from spu_link.errors import InvalidProgram
from tngd.spu.v1 import spu_pb2 as pb

ArrayLike: TypeAlias = Tensor | NDArray[Any]
"""What operands are given as: a tensor or a numpy array; float32 or float64, but for indices."""

Role: TypeAlias = "pb.Role.ValueType"
"""What a tensor is for: a value of the protocol's enum."""

WireBlock: TypeAlias = tuple[pb.Block, dict[Role, Tensor]]
"""One block on the wire: its geometry, and its tensors by role in the order of their bytes."""

Shapes: TypeAlias = Mapping[Role, tuple[int, ...]]
"""Shapes of one block's tensors by role."""

CHUNK_ELEMENTS = 1 << 22
"""Most elements of explicit rows that a Gram matrix is accumulated from at a time (32 MiB in float64)."""

GRAM_STRIP = 192
"""Rows of a Gram matrix that are computed at once."""

FLOATS = (torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


class Operator(ABC):
    """A symmetric positive semi-definite curvature matrix F of shape (N, N), however it is held."""

    kind: str
    """Name of the operator's block on the wire, or of the composition."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix behind `apply`: (m, N) for a factor A, (N, N) for F itself."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Element type of the operands."""

    @abstractmethod
    def curvature(self, v: Tensor) -> Tensor:
        """Product F v for `v` of shape (..., N), in the dtype of `v`."""

    @abstractmethod
    def apply(self, v: Tensor) -> Tensor:
        """Product of this matrix with `v` of shape (..., N): shape (..., m), in the dtype of `v`."""

    @abstractmethod
    def adjoint(self, w: Tensor) -> Tensor:
        """Product of this matrix, transposed, with `w` of shape (..., m): shape (..., N), in the dtype of `w`."""

    @abstractmethod
    def gram(self) -> Tensor:
        """This matrix times its transpose, shape (m, m), float64, accumulated in float64."""

    @abstractmethod
    def dense(self) -> Tensor:
        """This matrix in full, of `shape`. For tests and small problems."""

    @abstractmethod
    def wire(self) -> list[WireBlock]:
        """Blocks on the wire, in the order of their parameters."""

    @abstractmethod
    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same operator with `function` applied to each operand but indices, for instance to change the dtype."""

    @property
    def nbytes(self) -> int:
        """Bytes of all operands."""
        return sum(t.nbytes for _, tensors in self.wire() for t in tensors.values())

    @property
    def parameters(self) -> int:
        """N, the number of parameters (cells)."""
        return self.shape[1]

    def __repr__(self) -> str:
        """Class, shape, dtype and size."""
        rows, columns = self.shape
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({rows} × {columns}, {dtype}, {self.nbytes / 1e6:.3g} MB)"


class FactorOperator(Operator):
    """F = AᵀA, held as the factor A of shape (m, N) in some form; `apply` and `adjoint` are A and Aᵀ."""

    def curvature(self, v: Tensor) -> Tensor:
        """Product AᵀA v for `v` of shape (..., N)."""
        return self.adjoint(self.apply(v))


class BlockFactor(FactorOperator):
    """A factor that is one block on the wire."""

    @staticmethod
    @abstractmethod
    def shape_of(block: pb.Block, shapes: Shapes) -> tuple[int, int]:
        """Shape (m, N) of A from the geometry and the tensors' shapes alone.

        Raises:
            InvalidProgram: when they do not fit together.
        """

    @classmethod
    @abstractmethod
    def from_wire(cls, block: pb.Block, tensors: Mapping[Role, Tensor]) -> Self:
        """The operator behind a block whose shapes `shape_of` has accepted."""

    @abstractmethod
    def to_rows(self) -> Tensor:
        """A in full, shape (m, N), in the operands' dtype."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, N) of A."""
        block, tensors = self.wire()[0]
        return self.shape_of(block, {role: tuple(t.shape) for role, t in tensors.items()})

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the operands."""
        return next(iter(self.wire()[0][1].values())).dtype

    def dense(self) -> Tensor:
        """A in full, shape (m, N)."""
        return self.to_rows()


def as_operand(value: ArrayLike, *, field: str, dimensions: int | tuple[int, ...]) -> Tensor:
    """A float32 or float64 tensor behind an array, without a copy where possible.

    Raises:
        InvalidProgram: when it has another dtype or another number of dimensions.
    """
    return _as_tensor(value, FLOATS, field, dimensions)


def as_indices(value: ArrayLike, *, field: str, dimensions: int) -> Tensor:
    """An int32 or int64 tensor behind an array, without a copy where possible.

    Raises:
        InvalidProgram: when it has another dtype or another number of dimensions.
    """
    return _as_tensor(value, INTEGERS, field, dimensions)


def _as_tensor(
    value: ArrayLike, dtypes: Sequence[torch.dtype], field: str, dimensions: int | tuple[int, ...]
) -> Tensor:
    tensor = torch.as_tensor(value).detach()
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InvalidProgram(
            f"{field} has dtype {tensor.dtype}; convert it to {names}", field=field, found=tensor.dtype, expected=names
        )
    allowed = (dimensions,) if isinstance(dimensions, int) else dimensions
    if tensor.dim() not in allowed or 0 in tensor.shape:
        expected = f"{either(allowed)} dimensions"
        raise InvalidProgram(
            f"{field} has shape {tuple(tensor.shape)}; it needs {expected}, none of them empty",
            field=field,
            found=tuple(tensor.shape),
            expected=expected,
        )
    return tensor


def either(choices: Iterable[object]) -> str:
    """Choices as people say them."""
    return " or ".join(str(choice) for choice in choices)


def seen_through(cotangents: Tensor, y: Tensor) -> Tensor:
    """Rows of A v from the change y of the layer's output, for k vectors v at once.

    Args:
        cotangents: shape (c, b, …).
        y: shape (k, b·…), in any grouping of the elements behind k.

    Returns:
        Σ over everything behind b of cotangents · y, shape (k, c, b).
    """
    delta = cotangents.flatten(2)
    return torch.einsum("cbf,kbf->kcb", delta, y.reshape(len(y), *delta.shape[1:]))


def weighted(cotangents: Tensor, w: Tensor) -> Tensor:
    """Cotangents weighted by vectors over the rows and summed over c.

    Args:
        cotangents: shape (c, b, …).
        w: shape (…, c·b).

    Returns:
        Shape (k, b, f), with k for all leading dimensions of `w`, and f for everything behind b.
    """
    c, b = cotangents.shape[:2]
    return torch.einsum("kcb,cbf->kbf", w.reshape(-1, c, b), cotangents.flatten(2))


def mismatch(field: str, found: object, expected: str) -> InvalidProgram:
    """The error for a shape that does not fit the others."""
    return InvalidProgram(f"{field} is {found}; expected {expected}", field=field, found=found, expected=expected)


def same_dtype(field: str, *tensors: Tensor) -> None:
    """Refuse operands of one block that differ in dtype.

    Raises:
        InvalidProgram: naming `field`.
    """
    if len({t.dtype for t in tensors}) > 1:
        raise mismatch(field, " and ".join(str(t.dtype) for t in tensors), "one dtype for all tensors of a block")


def gram_of(columns: Iterable[Tensor], m: int) -> Tensor:
    """Gram matrix R Rᵀ of shape (m, m), float64, from consecutive column stretches R_j of shape (m, n_j).

    A stretch is multiplied in its own dtype, and the stretches are added up in float64.
    """
    total: Tensor | None = None
    strips = [slice(i, min(i + GRAM_STRIP, m)) for i in range(0, m, GRAM_STRIP)]
    for part in columns:
        part = part.contiguous()
        first = total is None
        if total is None:
            total = torch.empty(m, m, dtype=torch.float64, device=part.device)
        # The lower triangle alone, in strips: torch has no product that knows of the symmetry.
        for rows in strips:
            product = _product(part[rows], part[: rows.stop])
            if first:
                total[rows, : rows.stop] = product
            else:
                total[rows, : rows.stop] += product
    assert total is not None
    for rows in strips:
        total[: rows.start, rows] = total[rows, : rows.start].T
        total[rows, rows] = total[rows, rows].tril() + total[rows, rows].tril(-1).T
    return total


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product left · rightᵀ.

    In float32 on a CPU by oneDNN, which uses all that the processor has. MKL, torch's default, takes twice as long on
    processors that Intel did not make; numpy's threads get in the way of torch's.
    """
    if left.dtype == torch.float32 and left.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return F.linear(left.to_mkldnn(), right).to_dense()
    return left @ right.T
