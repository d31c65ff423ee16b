"""The operator interface, and the base class of all factor operators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from spu_link.errors import either, mismatch
from spu_link.operators.gram import gram_of, mirror, strips

ArrayLike: TypeAlias = Tensor | NDArray[Any]
"""Type of an operand: a tensor or a numpy array; float32 or float64, but for indices."""

Role: TypeAlias = Literal["matrix", "rows", "input", "cotangent", "indices"]
"""Role of a tensor in its block."""

Shapes: TypeAlias = Mapping[Role, tuple[int, ...]]
"""Shapes of one block's tensors by role."""

Geometry: TypeAlias = Mapping[str, Any]
"""Numbers, truth values and tuples of numbers of one block by name: what its tensors' shapes leave open."""

CHUNK_ELEMENTS = 1 << 22
"""Max elements of explicit rows that AAᵀ or AᵀA is accumulated from at a time (32 MiB in float64)."""

FLOATS = (torch.float32, torch.float64)
"""Element types of operands but indices."""

INTEGERS = (torch.int32, torch.int64)
"""Element types of indices."""


class Operator(ABC):
    """A symmetric positive semi-definite curvature matrix F of shape (N, N), however it is held.

    Its products raise `RuntimeError` for vectors of another length.
    """

    kind: ClassVar[str]
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
        """Return F v for `v` of shape (..., N), in the dtype of `v`."""

    def apply(self, v: Tensor) -> Tensor:
        """Return this matrix times `v` of shape (..., N): shape (..., m), in the dtype of `v`."""
        return self.curvature(v)

    def adjoint(self, w: Tensor) -> Tensor:
        """Return this matrix, transposed, times `w` of shape (..., m): shape (..., N), in the dtype of `w`."""
        return self.curvature(w)

    def gram(self) -> Tensor:
        """Return the Gram matrix: this matrix times its transpose, shape (m, m), float64, accumulated in float64."""
        return gram_of([self.dense()], self.shape[0])

    @abstractmethod
    def dense(self) -> Tensor:
        """Return this matrix in full, of `shape`. For tests and small problems."""

    def curvature_matrix(self) -> Tensor:
        """Return F in full, shape (N, N), float64; it may share memory with an operand."""
        return self.dense().to(torch.float64)

    @abstractmethod
    def to_blocks(self) -> Sequence[BlockOperator]:
        """Return the blocks in which it travels, in the order of their parameters.

        Raises:
            InvalidProgram: when no device takes such an operator.
        """

    @abstractmethod
    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return this operator with `function` applied to each operand but indices, for instance another dtype."""

    @property
    def operands(self) -> list[Tensor]:
        """Tensors of all blocks, in the order of their bytes."""
        return [tensor for block in self.to_blocks() for tensor in block.tensors.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of all operands."""
        return sum(operand.nbytes for operand in self.operands)

    @property
    def parameters(self) -> int:
        """N, the number of parameters (cells)."""
        return self.shape[1]

    def __repr__(self) -> str:
        """Class, shape, dtype and size."""
        rows, columns = self.shape
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({rows} × {columns}, {dtype}, {self.nbytes / 1e6:.3g} MB)"


class BlockOperator(Operator):
    """An operator that travels as one block: its geometry, and its tensors by role.

    To add one, make a subclass and put it into `spu_link.wire.tables.BLOCKS`. The constructor takes the tensors in the
    order of `dimensions` for `_hold`, and the numbers of `fields` by name, which are attributes too.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    """Names of the geometry's numbers, on the wire too."""

    dimensions: ClassVar[Mapping[Role, tuple[int, ...]]]
    """Numbers of dimensions that each tensor may have, by role, in the order of their bytes."""

    tensors: Mapping[Role, Tensor]
    """The operands by role."""

    @abstractmethod
    def __init__(self, *tensors: Any, **geometry: Any) -> None: ...

    @classmethod
    @abstractmethod
    def shape_of(cls, geometry: Geometry, shapes: Shapes) -> tuple[int, int]:
        """Return the shape of the matrix, from the geometry and the tensors' shapes alone.

        Raises:
            InvalidProgram: when they do not fit together.
        """

    def _hold(self, *operands: ArrayLike) -> list[Tensor]:
        """Check and keep the operands; return them as tensors. Call it when the attributes of `fields` are set.

        Raises:
            InvalidProgram: when they do not fit together.
        """
        self.tensors = {
            role: as_operand(
                operand,
                field=f"{self.kind}.{role}",
                dimensions=dimensions,
                dtypes=INTEGERS if role == "indices" else FLOATS,
            )
            for operand, (role, dimensions) in zip(operands, self.dimensions.items(), strict=True)
        }
        dtypes = [str(t.dtype) for t in self.tensors.values() if t.is_floating_point()]
        if len(set(dtypes)) > 1:
            raise mismatch(self.kind, " and ".join(dtypes), "one dtype for all tensors of a block")
        self._shape = self.shape_of(self.geometry, {role: tuple(t.shape) for role, t in self.tensors.items()})
        return list(self.tensors.values())

    @property
    def geometry(self) -> dict[str, Any]:
        """The numbers of `fields` by name."""
        return {name: getattr(self, name) for name in self.fields}

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix behind `apply`."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the operands but indices."""
        return next(t.dtype for t in self.tensors.values() if t.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where the operands are."""
        return next(iter(self.tensors.values())).device

    def to_blocks(self) -> Sequence[BlockOperator]:
        """Itself."""
        return [self]

    def like(self, *tensors: Tensor) -> Self:
        """Return a block of the same geometry with other tensors."""
        return type(self)(*tensors, **self.geometry)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return this block with `function` applied to each operand but indices."""
        return self.like(*map(function, self.tensors.values()))


class FactorOperator(Operator):
    """F = AᵀA, held as the factor A of shape (m, N) in some form; `apply` and `adjoint` are A and Aᵀ."""

    @abstractmethod
    def apply(self, v: Tensor) -> Tensor:
        """Return A v for `v` of shape (..., N): shape (..., m), in the dtype of `v`."""

    @abstractmethod
    def adjoint(self, w: Tensor) -> Tensor:
        """Return Aᵀ w for `w` of shape (..., m): shape (..., N), in the dtype of `w`."""

    def curvature(self, v: Tensor) -> Tensor:
        """Return AᵀA v for `v` of shape (..., N), in the dtype of `v`."""
        return self.adjoint(self.apply(v))

    def gram(self) -> Tensor:
        """Return A Aᵀ, shape (m, m), float64, on the CPU."""
        m = self.shape[0]
        total = torch.zeros(m, m, dtype=torch.float64)
        self.add_gram(total)
        return mirror(total)

    @abstractmethod
    def add_gram(self, total: Tensor) -> None:
        """Add the lower triangle of A Aᵀ to `total`, shape (m, m), float64; the elements above it are not used."""

    def curvature_matrix(self) -> Tensor:
        """Return AᵀA, shape (N, N), float64, on the CPU, accumulated from chunks of rows: A is never whole in memory.

        Where m ≥ N, it is smaller than A Aᵀ. Operands are converted to float64 before the rows are computed from them,
        because the rounding of rows in float32 would move eigenvalues by 1e-7 ‖F‖.
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


class BlockFactor(FactorOperator, BlockOperator):
    """A factor that travels as one block."""

    @abstractmethod
    def to_rows(self) -> Tensor:
        """Return A in full, shape (m, N), in the operands' dtype."""

    def dense(self) -> Tensor:
        """Return A in full, shape (m, N), in the operands' dtype."""
        return self.to_rows()

    def dense_rows(self, rows: slice) -> Tensor:
        """Return consecutive rows of A in full, float64, from the operands of their samples alone."""
        cotangents = self.tensors.get("cotangent")
        samples = self.shape[0] if cotangents is None else cotangents.shape[1]
        parts = []
        for columns, batch in _rectangles(rows, samples):
            operands = [t[columns, batch] if role == "cotangent" else t[batch] for role, t in self.tensors.items()]
            parts.append(self.like(*operands).map(lambda operand: operand.double()).to_rows())
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rectangles(rows: slice, samples: int) -> Iterator[tuple[slice, slice]]:
    """Yield consecutive rows (c, i), i < `samples`, as slices of c and of i: whole columns c, or a part of one."""
    start = rows.start
    while start < rows.stop:
        column, first = divmod(start, samples)
        columns = 1 if first else max(1, (rows.stop - start) // samples)
        stop = min((column + columns) * samples, rows.stop)
        yield slice(column, column + columns), slice(first, samples if columns > 1 else first + stop - start)
        start = stop


def as_operand(
    value: ArrayLike, *, field: str, dimensions: Sequence[int], dtypes: Sequence[torch.dtype] = FLOATS
) -> Tensor:
    """Return an array as a checked tensor, without a copy where possible.

    Args:
        value: the array.
        field: its name in errors.
        dimensions: numbers of dimensions it may have.
        dtypes: element types it may have.

    Raises:
        InvalidProgram: when it has others, or an extent of 0.
    """
    tensor = torch.as_tensor(value).detach()
    if tensor.dtype not in dtypes:
        raise mismatch(field, f"of dtype {tensor.dtype}", either(str(dtype).removeprefix("torch.") for dtype in dtypes))
    if tensor.dim() not in dimensions or 0 in tensor.shape:
        raise mismatch(field, f"of shape {tuple(tensor.shape)}", f"{either(dimensions)} dimensions, none of them empty")
    return tensor


def contract_cotangents(cotangents: Tensor, y: Tensor) -> Tensor:
    """Return the rows of A v from the change y of the layer's output, for k vectors v at once.

    Args:
        cotangents: shape (c, b, …).
        y: shape (k, b·…), in any grouping of the elements behind k.

    Returns:
        Σ of cotangents · y over everything behind b, shape (k, c, b).
    """
    delta = cotangents.flatten(2)
    return torch.einsum("cbf,kbf->kcb", delta, y.reshape(len(y), *delta.shape[1:]))


def weight_cotangents(cotangents: Tensor, w: Tensor) -> Tensor:
    """Return the cotangents weighted by vectors over the rows and summed over c.

    Args:
        cotangents: shape (c, b, …).
        w: shape (…, c·b).

    Returns:
        Shape (k, b, f), with k for all leading dimensions of `w`, and f for everything behind b.
    """
    c, b = cotangents.shape[:2]
    return torch.einsum("kcb,cbf->kbf", w.unflatten(-1, (c, b)).reshape(-1, c, b), cotangents.flatten(2))
