"""Tensors as bytes, and on their way to the memory of the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from spu_link.wire.tables import DTYPES, WIRE_DTYPES, WireRole
from tngd.spu.v1 import spu_pb2 as pb

ALIGNMENT = 16
"""Tensors that come to the host together begin at multiples of this, in bytes."""


def tensor_spec(
    tensor: Tensor, *, role: WireRole = pb.ROLE_UNSPECIFIED, block: int = 0, scales: Sequence[float] = ()
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


def copy_to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors on the CPU, contiguous and without a graph; those that are so already are not copied.

    Those on an accelerator come over together: they are laid one after the other there, go in one asynchronous copy
    into pinned memory, behind the work that the current stream has been given, and the host waits once.
    """
    arrived = [tensor.detach() for tensor in tensors]
    for device in {tensor.device for tensor in arrived if tensor.device.type != "cpu"}:
        places = [place for place, tensor in enumerate(arrived) if tensor.device == device]
        together = _copy_together([arrived[place] for place in places], device)
        for place, tensor in zip(places, together, strict=True):
            arrived[place] = tensor
    return [tensor.contiguous() for tensor in arrived]


def _copy_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of one accelerator, as views of one piece of pinned memory."""
    begins, end = [], 0
    for tensor in tensors:
        begins.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    there = torch.empty(end, dtype=torch.uint8, device=device)
    for view, tensor in zip(_views(there, begins, tensors), tensors, strict=True):
        view.copy_(tensor)
    here = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    here.copy_(there, non_blocking=True)
    torch.accelerator.current_stream(device).synchronize()
    return _views(here, begins, tensors)


def _views(memory: Tensor, begins: Sequence[int], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of bytes, of the dtypes and shapes of the tensors."""
    return [
        memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for begin, tensor in zip(begins, tensors, strict=True)
    ]
