"""Evaluate a model again as it was evaluated before, and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class RandomState(NamedTuple):
    """States of torch's own random number generators: that of the CPU, and those of all GPUs if they are in use."""

    cpu: Tensor
    gpus: list[Tensor]

    @classmethod
    def now(cls) -> RandomState:
        """Return their current states."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])

    def restore(self) -> None:
        """Set the generators to these states."""
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)


@contextmanager
def replay(model: nn.Module, state: RandomState) -> Iterator[None]:
    """Within, random numbers come as they did from `state` on; afterwards generators and buffers are as they were.

    Buffers are what forward passes change in a model, such as running means.
    """
    now = RandomState.now()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    state.restore()
    try:
        yield
    finally:
        now.restore()
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
