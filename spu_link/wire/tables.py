"""Kinds of block, roles and element types: what a header may name."""

from __future__ import annotations

import torch

from spu_link.operators import Conv2dRows, EmbeddingRows, LinearRows, Rows
from spu_link.operators.base import BlockFactor, Role
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

FACTORS: dict[str, type[BlockFactor]] = {cls.kind: cls for cls in (Rows, LinearRows, Conv2dRows, EmbeddingRows)}
DIMENSIONS: dict[str, dict[Role, tuple[int, ...]]] = {
    "dense": {pb.ROLE_MATRIX: (2,)},
    "kept": {},
    "rows": {pb.ROLE_ROWS: (2,)},
    "linear": {pb.ROLE_INPUT: (2, 3), pb.ROLE_COTANGENT: (3, 4)},
    "conv2d": {pb.ROLE_INPUT: (4,), pb.ROLE_COTANGENT: (5,)},
    "embedding": {pb.ROLE_INDICES: (2,), pb.ROLE_COTANGENT: (4,)},
}
"""Tensors that each kind of block has, by role, and the numbers of dimensions they may have."""

WHOLE = ("dense", "kept")
"""Kinds of block that make up an operator alone."""

PROGRAM_ROLES = (pb.ROLE_DRIVE, pb.ROLE_START)
ROLE_DTYPES = {pb.ROLE_DRIVE: VECTOR_DTYPES, pb.ROLE_START: VECTOR_DTYPES, pb.ROLE_INDICES: INDEX_DTYPES}
"""Element types of tensors whose role says more than that they belong to an operator."""


def role_name(role: Role) -> str:
    """Name of a role for people, also of one that is unknown."""
    return pb.Role.Name(role) if role in pb.Role.values() else f"role {role}"


def dtype_name(dtype: pb.DType.ValueType) -> str:
    """Name of an element type for people, also of one that is unknown."""
    return pb.DType.Name(dtype) if dtype in pb.DType.values() else f"dtype {dtype}"
