"""Evaluating a model once more as it was evaluated before, and leaving no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class RandomState(NamedTuple):
    """Where torch's own random number generators stand: that of the CPU, and those of all GPUs if they are in use."""

    cpu: Tensor
    gpus: list[Tensor]

    @classmethod
    def now(cls) -> RandomState:
        """Where they stand now."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])

    def restore(self) -> None:
        """Put them there."""
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


class Paused(Protocol):
    """A capture of curvature, which sees no forward pass while it is paused."""

    paused: bool


class Reevaluation:
    """A closure called again, after the parameters have changed: the same batch with the same random numbers.

    Made before the closure is called for the first time.

    Args:
        model: what is trained; its buffers stay what they are.
        closure: evaluates the model, computes gradients and returns the loss.
        capture: what is paused meanwhile; None where nothing is captured.
    """

    def __init__(self, model: nn.Module, closure: Callable[[], float | Tensor], capture: Paused | None) -> None:
        self._model, self._closure, self._capture = model, closure, capture
        self._random = RandomState.now()

    def loss(self, parameters: Iterable[Tensor]) -> float:
        """Return the loss at the present parameters; gradients, buffers and random numbers are left as they are.

        Args:
            parameters: those whose gradients the closure computes.
        """
        gradients = {p: p.grad for p in parameters}
        for p in gradients:
            p.grad = None
        try:
            with _paused(self._capture), replay(self._model, self._random), torch.enable_grad():
                return number(self._closure())
        finally:
            for p, gradient in gradients.items():
                p.grad = gradient


def number(loss: Any) -> float:
    """Return what a closure returned as a number: a loss, or a tensor of one.

    Raises:
        TypeError: for anything else, such as None.
    """
    if loss is None:
        raise TypeError("the closure returned None; it must return the loss, a number or a tensor of one")
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


@contextmanager
def _paused(capture: Paused | None) -> Iterator[None]:
    """Capture no forward pass within."""
    before = capture is not None and capture.paused
    if capture is not None:
        capture.paused = True
    try:
        yield
    finally:
        if capture is not None:
            capture.paused = before
