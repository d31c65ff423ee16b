"""The operator interface, and the base class of all factor operators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from spu_link.errors import InvalidProgram
from spu_link.operators.gram import gram_of, mirror, strips
from tngd.spu.v1 import spu_pb2 as pb

ArrayLike: TypeAlias = Tensor | NDArray[Any]
"""Type of an operand: a tensor or a numpy array; float32 or float64, but for indices."""

Role: TypeAlias = "pb.Role.ValueType"
"""Role of a tensor: a value of the protocol's enum."""

WireBlock: TypeAlias = tuple[pb.Block, dict[Role, Tensor]]
"""One block on the wire: its geometry, and its tensors by role in the order of their bytes."""

Shapes: TypeAlias = Mapping[Role, tuple[int, ...]]
"""Shapes of one block's tensors by role."""

CHUNK_ELEMENTS = 1 << 22
"""Max elements of explicit rows that AAᵀ or AᵀA is accumulated from at a time (32 MiB in float64)."""

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

    def curvature_matrix(self) -> Tensor:
        """Return F in full, shape (N, N), float64; it may share memory with an operand."""
        return self.dense().to(torch.float64)

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

    def gram(self) -> Tensor:
        """A Aᵀ, shape (m, m), float64, on the CPU."""
        m = self.shape[0]
        total = torch.zeros(m, m, dtype=torch.float64)
        self.add_gram(total)
        return mirror(total)

    @abstractmethod
    def add_gram(self, total: Tensor) -> None:
        """Add the lower triangle of A Aᵀ to `total`, shape (m, m), float64; what lies above it counts for nothing."""

    def curvature_matrix(self) -> Tensor:
        """Return AᵀA, shape (N, N), float64, on the CPU, accumulated from chunks of rows: A is never whole in memory.

        It is the smaller of the two products where m ≥ N. Operands are converted to float64 before rows are made of
        them, so that float32 operands lose nothing: the rounding of rows in float32 would move eigenvalues by 1e-7 ‖F‖.
        """
        return gram_of((rows.T for rows in self.dense_chunks()), self.parameters)

    def dense_chunks(self, elements: int = CHUNK_ELEMENTS) -> Iterator[Tensor]:
        """Yield A in full, float64, in chunks (k, N) of consecutive rows, each of at most `elements` or of one row."""
        m, n = self.shape
        return (self.dense_rows(rows) for rows in strips(m, max(1, elements // n)))

    @abstractmethod
    def dense_rows(self, rows: slice) -> Tensor:
        """Return consecutive rows of A in full, float64.

        Args:
            rows: k of the m rows, with start and stop in 0 … m, and without a step.

        Returns:
            Shape (k, N), on the device of the operands.
        """


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

    def dense_rows(self, rows: slice) -> Tensor:
        """Return consecutive rows of A in full, float64, from the operands of their samples alone."""
        block, tensors = self.wire()[0]
        cotangents = tensors.get(pb.ROLE_COTANGENT)
        samples = self.shape[0] if cotangents is None else cotangents.shape[1]
        parts = []
        for columns, some in _rectangles(rows, samples):
            operands = {role: t[columns, some] if role == pb.ROLE_COTANGENT else t[some] for role, t in tensors.items()}
            parts.append(self.from_wire(block, operands).map(lambda operand: operand.double()).to_rows())
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rectangles(rows: slice, samples: int) -> Iterator[tuple[slice, slice]]:
    """Cut consecutive rows (c, i), i < `samples`, into (columns, samples): whole columns, or a part of one."""
    start = rows.start
    while start < rows.stop:
        column, first = divmod(start, samples)
        columns = 1 if first else max(1, (rows.stop - start) // samples)
        stop = min((column + columns) * samples, rows.stop)
        yield slice(column, column + columns), slice(first, samples if columns > 1 else first + stop - start)
        start = stop


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
