"""Tensors as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from spu_link.operators.base import Role
from spu_link.wire.tables import DTYPES, WIRE_DTYPES
from tngd.spu.v1 import spu_pb2 as pb


def tensor_spec(
    tensor: Tensor, *, role: Role = pb.ROLE_UNSPECIFIED, block: int = 0, scales: Sequence[float] = ()
) -> pb.TensorSpec:
    """Description of a tensor."""
    dtype = WIRE_DTYPES[tensor.dtype]
    return pb.TensorSpec(role=role, block=block, dtype=dtype, shape=list(tensor.shape), scales=scales)


def nbytes_of(spec: pb.TensorSpec) -> int:
    """Bytes of a tensor on the wire."""
    return prod(spec.shape) * DTYPES[spec.dtype].itemsize


def byte_views(tensors: Iterable[Tensor]) -> list[memoryview]:
    """The raw bytes of contiguous CPU tensors, without a copy."""
    return [tensor.view(-1).view(torch.uint8).numpy().data for tensor in tensors]  # numpy has no bfloat16


def tensor_from(spec: pb.TensorSpec, buffer: memoryview, offset: int = 0) -> Tensor:
    """The tensor behind its bytes: a view of `buffer` where the alignment allows, else a copy."""
    dtype = DTYPES[spec.dtype]
    flat = np.frombuffer(buffer, dtype=np.uint8, count=nbytes_of(spec), offset=offset)
    if offset % dtype.itemsize:
        flat = flat.copy()
    return torch.from_numpy(flat).view(dtype).view(*spec.shape)
