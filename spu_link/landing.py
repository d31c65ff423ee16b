"""From where tensors were computed to the memory of the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def landed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, contiguous and without a graph; those that are so already are not copied.

    Those on a GPU come over together: each is copied into pinned memory, behind the work that its current stream has
    been given, and the host waits once, for all of them.
    """
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    arriving = [
        torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor.detach(), non_blocking=True)
        if tensor.is_cuda
        else tensor.detach()
        for tensor in tensors
    ]
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return [tensor.cpu().contiguous() for tensor in arriving]
