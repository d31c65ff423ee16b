"""Which losses the parameters' gradients are those of."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from host_client.curvature.hooks import WeakHook

SCALED = 256.0
"""The smallest factor of a loss that is taken for that of a gradient scaler: those are large powers of two."""


class GradScaler(Protocol):
    """What is asked of a `torch.amp.GradScaler`."""

    def get_scale(self) -> float:
        """The factor that losses are multiplied with."""
        ...


class Differentiated(NamedTuple):
    """A backward pass through a loss.

    Attributes:
        number: of the loss.
        curvature: what belongs to the loss; None if it has been released.
        factor: by which the loss was multiplied before it was differentiated.
        run: number of the engine's run.
    """

    number: int
    curvature: Any
    factor: Tensor
    run: int


class Gradients:
    """The losses whose gradients the parameters hold, one entry for each backward pass that has added to them.

    Only what has come to ``.grad`` counts: not `torch.autograd.grad`, and no gradients that have been dropped since, be
    it by ``None`` or by zeros in place.

    Args:
        parameters: those whose gradients count.
        grad_scaler: the scaler that multiplies the losses, if any.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], grad_scaler: GradScaler | None) -> None:
        self._parameters, self._grad_scaler = list(parameters), grad_scaler
        self._losses: dict[int, Any] = {}  # what belongs to losses that may yet be differentiated, by number
        self._number = 0
        self._passes: list[Differentiated] = []
        self._accumulated: set[int] = set()  # runs that have added to gradients
        # What the gradients were when a backward pass last added to them: index of the parameter, version, address.
        self._known: dict[int, tuple[int, int]] = {}
        self._places = {id(parameter): index for index, parameter in enumerate(self._parameters)}
        hook = WeakHook(self._accumulate)
        self._handles: list[RemovableHandle] = [
            parameter.register_post_accumulate_grad_hook(hook) for parameter in self._parameters
        ]

    def follow(self, loss: Tensor, curvature: Any) -> None:
        """Note when a loss is differentiated. The loss keeps nothing of its curvature alive."""
        number = self._number = self._number + 1
        self._losses[number] = curvature
        weakref.finalize(loss, _drop, weakref.ref(self), number)
        loss.register_hook(_Note(WeakHook(self._note), number))

    def passes(self) -> list[Differentiated]:
        """Return the backward passes whose gradients the parameters hold.

        Raises:
            RuntimeError: when a loss of an earlier step has been differentiated once more.
        """
        self._forget_dropped()
        passes = [one for one in self._passes if one.run in self._accumulated]
        if any(one.curvature is None for one in passes):
            raise RuntimeError(
                "a loss from before the last step was differentiated again, and its curvature has been released: "
                "compute the loss anew before backward()"
            )
        return passes

    def weights(self, passes: Sequence[Differentiated]) -> list[float]:
        """Return the factors of losses in the gradients, without that of the gradient scaler.

        Raises:
            RuntimeError: for a factor below zero, or one that must be that of a scaler that is not known.
        """
        scale = 1.0 if self._grad_scaler is None else self._grad_scaler.get_scale()
        weights = [float(one.factor) / scale for one in passes]
        if min(weights) < 0.0:
            raise RuntimeError(
                f"losses were differentiated with the factors {weights}; a loss is minimised, so no factor may be "
                "negative"
            )
        if self._grad_scaler is None and max(weights) >= SCALED:
            raise RuntimeError(
                f"a loss was differentiated with a factor of {max(weights):g}, as a gradient scaler applies: make the "
                "optimizer with grad_scaler=, so that F has the scale of the unscaled gradients"
            )
        return weights

    def forget(self) -> None:
        """Start over: the gradients have been used, or dropped. Losses yet to be differentiated stay known."""
        for one in self._passes:
            if one.run in self._accumulated:
                self._losses.pop(one.number, None)
        self._passes.clear()
        self._accumulated.clear()
        self._known.clear()

    def close(self) -> None:
        """Remove the hooks, and release everything."""
        for handle in self._handles:
            handle.remove()
        self.forget()
        self._losses.clear()

    def _note(self, number: int, factor: Tensor) -> None:
        """Hook on a loss: its gradients are on their way."""
        run: int = torch._C._current_graph_task_id()
        if not any(one.run == run for one in self._passes):
            self._forget_dropped()
        self._passes.append(Differentiated(number, self._losses.get(number), factor.detach(), run))

    def _accumulate(self, parameter: Tensor) -> None:
        """Hook on the parameters: a gradient has been added to theirs."""
        gradient = parameter.grad
        self._accumulated.add(torch._C._current_graph_task_id())
        if gradient is not None:
            self._known[self._places[id(parameter)]] = _state(gradient)

    def _forget_dropped(self) -> None:
        """Forget passes whose gradients are gone: all of them, since those of some may be dropped on purpose."""
        if self._known and all(self._is_dropped(index, state) for index, state in self._known.items()):
            self._passes = [one for one in self._passes if one.run not in self._accumulated]
            self._accumulated.clear()
            self._known.clear()
    
    def _is_dropped(self, index: int, state: tuple[int, int]) -> bool:
        gradient = self._parameters[index].grad
        if gradient is None:
            return True
        if _state(gradient) == state:
            return False
        return not bool(gradient.coalesce().values().any() if gradient.is_sparse else gradient.any())


class _Note:
    """A hook on a loss, with the loss's number; a copy of the loss has none."""

    def __init__(self, hook: Callable[..., None], number: int) -> None:
        self._hook, self._number = hook, number

    def __call__(self, factor: Tensor) -> None:
        self._hook(self._number, factor)


def _state(gradient: Tensor) -> tuple[int, int]:
    return gradient._version, 0 if gradient.is_sparse else gradient.data_ptr()


def _drop(owner: weakref.ref[Gradients], number: int) -> None:
    gradients = owner()
    if gradients is not None:
        gradients._losses.pop(number, None)
