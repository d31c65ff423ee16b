"""Memory at addresses that arithmetic likes.

Products of the BLAS library may differ in their last bits with where an operand begins, modulo 64 bytes. Runs that are
to be the same to the bit therefore hold their operands at the same places.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

BOUNDARY = 64
"""Alignment of torch's own memory on the CPU, in bytes."""


def aligned(nbytes: int) -> memoryview:
    """Memory that begins at a boundary."""
    return torch.empty(nbytes, dtype=torch.uint8).numpy().data


def aligned_copy(data: bytes | bytearray | memoryview) -> memoryview:
    """A copy of bytes that begins at a boundary."""
    copy = aligned(len(data))
    copy[:] = data
    return copy


def fill(buffer: memoryview, views: Iterable[memoryview]) -> int:
    """Copy the views to the beginning of a buffer, one after the other; how many bytes they have."""
    end = 0
    for view in views:
        begin, end = end, end + len(view)
        buffer[begin:end] = view
    return end


def place_of(tensor: Tensor) -> int:
    """Return the address at which a tensor of this machine's memory begins, modulo the boundary."""
    return tensor.data_ptr() % BOUNDARY


def copy_at(tensor: Tensor, place: int) -> Tensor:
    """Copy a contiguous CPU tensor to `place` bytes behind a boundary, a multiple of the element size."""
    room = torch.empty(tensor.nbytes + place, dtype=torch.uint8)[place:]
    copy = room.view(tensor.dtype).view(tensor.shape)
    copy.copy_(tensor)
    return copy
