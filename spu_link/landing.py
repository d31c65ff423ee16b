"""From where tensors were computed to the memory of the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16
"""Tensors that travel together begin at multiples of this, in bytes."""


def landed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, contiguous and without a graph; those that are so already are not copied.

    Those on an accelerator come over together: they are laid one after the other there, go in one asynchronous copy
    into pinned memory, behind the work that the current stream has been given, and the host waits once.
    """
    arrived = [tensor.detach() for tensor in tensors]
    for device in {tensor.device for tensor in arrived if tensor.device.type != "cpu"}:
        places = [place for place, tensor in enumerate(arrived) if tensor.device == device]
        together = _landed_together([arrived[place] for place in places], device)
        for place, tensor in zip(places, together, strict=True):
            arrived[place] = tensor
    return [tensor.contiguous() for tensor in arrived]


def _landed_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
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
