"""Kinds of block, roles and element types: what a header may name."""

from __future__ import annotations

from typing import Any, TypeAlias, get_args

import torch

from spu_link.errors import either, mismatch
from spu_link.operators import Conv2dRows, Dense, EmbeddingRows, Kept, LinearRows, Rows
from spu_link.operators.base import BlockOperator, Role
from tngd.spu.v1 import spu_pb2 as pb

DTYPES: dict[pb.DType.ValueType, torch.dtype] = {
    pb.DTYPE_FLOAT32: torch.float32,
    pb.DTYPE_FLOAT64: torch.float64,
    pb.DTYPE_INT32: torch.int32,
    pb.DTYPE_INT64: torch.int64,
    pb.DTYPE_FLOAT16: torch.float16,
    pb.DTYPE_BFLOAT16: torch.bfloat16,
    pb.DTYPE_INT16: torch.int16,
}
INDEX_DTYPES = (pb.DTYPE_INT32, pb.DTYPE_INT64)
VECTOR_DTYPES = (pb.DTYPE_FLOAT32, pb.DTYPE_FLOAT64)
FACTOR_DTYPES = tuple(dtype for dtype in DTYPES if dtype not in INDEX_DTYPES)
WIRE_DTYPES = {dtype: wire for wire, dtype in DTYPES.items()}

WIDEST = 8
"""Bytes of the widest element."""

WireRole: TypeAlias = "pb.Role.ValueType"
"""Role of a tensor: a value of the protocol's enum."""

ROLES: dict[Role, WireRole] = {role: pb.Role.Value(f"ROLE_{role.upper()}") for role in get_args(Role)}
OPERAND_ROLES = {wire: role for role, wire in ROLES.items()}

BLOCKS: dict[str, type[BlockOperator]] = {
    cls.kind: cls for cls in (Dense, Kept, Rows, LinearRows, Conv2dRows, EmbeddingRows)
}
"""Operators that travel. The message Block has a field for each kind, of a message with the `fields` of the class."""

DIMENSIONS = {
    kind: {ROLES[role]: dimensions for role, dimensions in cls.dimensions.items()} for kind, cls in BLOCKS.items()
}
"""Tensors that each kind of block has, by role, and the numbers of dimensions they may have."""

PROGRAM_ROLES = (pb.ROLE_DRIVE, pb.ROLE_START)
ROLE_DTYPES = {pb.ROLE_DRIVE: VECTOR_DTYPES, pb.ROLE_START: VECTOR_DTYPES, pb.ROLE_INDICES: INDEX_DTYPES}
"""Element types of tensors whose role says more than that they belong to an operator."""


def block_of(operator: BlockOperator) -> pb.Block:
    """Message of a block, without its tensors.

    Raises:
        InvalidProgram: when the wire knows no such operator.
    """
    if not isinstance(operator, BLOCKS.get(operator.kind, ())):
        raise mismatch("operator", f"a {type(operator).__name__} of kind {operator.kind!r}", f"one of {either(BLOCKS)}")
    message: dict[str, Any] = {operator.kind: operator.geometry}
    return pb.Block(**message)


def geometry_of(block: pb.Block) -> dict[str, Any]:
    """Return the numbers of a block by name."""
    kind = block.WhichOneof("kind") or ""
    numbers = {name: getattr(getattr(block, kind), name) for name in BLOCKS[kind].fields}
    return {name: value if isinstance(value, int) else tuple(value) for name, value in numbers.items()}


def role_name(role: WireRole) -> str:
    """Name of a role for people, also of one that is unknown."""
    return pb.Role.Name(role) if role in pb.Role.values() else f"role {role}"


def dtype_name(dtype: pb.DType.ValueType) -> str:
    """Name of an element type for people, also of one that is unknown."""
    return pb.DType.Name(dtype) if dtype in pb.DType.values() else f"dtype {dtype}"
