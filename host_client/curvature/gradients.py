"""The losses whose gradients the parameters hold."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from host_client.curvature.hooks import WeakHook

SCALED = 256.0
"""The smallest factor of a loss that is taken for that of a gradient scaler: those are large powers of two."""


class GradScaler(Protocol):
    """The part of `torch.amp.GradScaler` that is used."""

    def get_scale(self) -> float:
        """The factor that losses are multiplied with."""
        ...


class Note:
    """A hook on a loss that holds what belongs to the loss, as long as its graph lives and no step has used it.

    Args:
        hook: called with the note and the factor when the loss is differentiated.
        curvature: what belongs to the loss.

    Attributes:
        curvature: the same; None once a step has used it.
    """

    def __init__(self, hook: WeakHook, curvature: Any) -> None:
        self._hook, self.curvature = hook, curvature

    def __call__(self, factor: Tensor) -> None:
        """Report the factor, and leave the gradient as it is."""
        self._hook(self, factor)


class BackwardPass(NamedTuple):
    """A backward pass through a loss.

    Attributes:
        note: of the loss.
        curvature: what belongs to the loss; None if a step has used it before.
        factor: by which the loss was multiplied before it was differentiated.
        run: number of the engine's run.
    """

    note: Note
    curvature: Any
    factor: Tensor
    run: int


class AccumulatedLoss(NamedTuple):
    """A loss whose gradients some parameters hold.

    Attributes:
        curvature: what belongs to the loss.
        factor: by which the loss was multiplied.
        parameters: indices of the parameters.
    """

    curvature: Any
    factor: Tensor
    parameters: frozenset[int]


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
        self._notes: weakref.WeakSet[Note] = weakref.WeakSet()
        self._passes: list[BackwardPass] = []
        self._accumulated: dict[int, set[int]] = {}  # by run, the parameters to whose gradients it has added
        # What the gradients were when a backward pass last added to them: index of the parameter, version, address.
        self._known: dict[int, tuple[int, int]] = {}
        self._places = {id(parameter): index for index, parameter in enumerate(self._parameters)}
        hook = WeakHook(self._accumulate)
        self._handles: list[RemovableHandle] = [
            parameter.register_post_accumulate_grad_hook(hook) for parameter in self._parameters
        ]
        self._memory = [parameter._cdata for parameter in self._parameters]

    def follow(self, loss: Tensor, curvature: Any) -> None:
        """Note when a loss is differentiated.

        Args:
            loss: with its graph.
            curvature: what belongs to it.
        """
        for index, parameter in enumerate(self._parameters):
            # After torch.utils.swap_tensors (by some load_state_dict) a parameter has its hooks but does not call them.
            if parameter._cdata != self._memory[index]:
                self._memory[index] = parameter._cdata
                parameter._post_accumulate_grad_hooks = parameter._post_accumulate_grad_hooks
        note = Note(WeakHook(self._differentiate), curvature)
        self._notes.add(note)
        loss.register_hook(note)

    def held(self) -> list[AccumulatedLoss]:
        """Return the losses whose gradients the parameters hold, one entry for each backward pass.

        Passes through one loss for some parameters each (``inputs=``) are one.

        Raises:
            RuntimeError: when a loss of an earlier step has been differentiated once more.
        """
        self._forget_dropped()
        found: list[tuple[Note, AccumulatedLoss]] = []
        for backward in self._passes:
            if backward.run not in self._accumulated:
                continue
            if backward.curvature is None:
                raise RuntimeError(
                    "a loss from before the last step was differentiated again, and its curvature has been released; "
                    "compute the loss anew before backward()"
                )
            held = AccumulatedLoss(backward.curvature, backward.factor, frozenset(self._accumulated[backward.run]))
            for i, (note, before) in enumerate(found):
                if (
                    note is backward.note
                    and not before.parameters & held.parameters
                    and bool(before.factor == held.factor)
                ):
                    found[i] = note, before._replace(parameters=before.parameters | held.parameters)
                    break
            else:
                found.append((backward.note, held))
        return [held for _, held in found]

    def weights(self, passes: Sequence[AccumulatedLoss]) -> list[float]:
        """Return the factors of losses in the gradients, without that of the gradient scaler.

        Raises:
            RuntimeError: for a factor below zero, or one that must be that of a scaler that is not known.
        """
        scale = 1.0 if self._grad_scaler is None else self._grad_scaler.get_scale()
        weights = [float(backward.factor) / scale for backward in passes]
        if min(weights) < 0.0:
            raise RuntimeError(
                f"losses were differentiated with the factors {weights}; a loss is minimised, so no factor may be "
                "negative"
            )
        if self._grad_scaler is None and max(weights) >= SCALED:
            raise RuntimeError(
                f"a loss was differentiated with a factor of {max(weights):g}, as a gradient scaler applies; make the "
                "optimizer with grad_scaler=, so that F has the scale of the unscaled gradients"
            )
        return weights

    def forget(self) -> None:
        """Start over: the gradients have been dropped. Losses yet to be differentiated stay known."""
        for backward in self._passes:
            if backward.run in self._accumulated:
                backward.note.curvature = None
        self._passes.clear()
        self._accumulated.clear()
        self._known.clear()

    def release(self) -> None:
        """Start over: the gradients have been used. Whoever keeps a loss keeps no curvature with it."""
        for note in self._notes:
            note.curvature = None
        self.forget()

    def close(self) -> None:
        """Remove the hooks, and release everything."""
        for handle in self._handles:
            handle.remove()
        self.release()

    def _differentiate(self, note: Note, factor: Tensor) -> None:
        """Hook on a loss: its gradients are on their way."""
        run: int = torch._C._current_graph_task_id()
        if not any(backward.run == run for backward in self._passes):
            self._forget_dropped()
        self._passes.append(BackwardPass(note, note.curvature, factor.detach(), run))

    def _accumulate(self, parameter: Tensor) -> None:
        """Hook on the parameters: a gradient has been added to theirs."""
        gradient = parameter.grad
        index = self._places[id(parameter)]
        self._accumulated.setdefault(torch._C._current_graph_task_id(), set()).add(index)
        if gradient is not None:
            self._known[index] = _state(gradient)

    def _forget_dropped(self) -> None:
        """Forget passes whose gradients are gone: all of them, since those of some may be dropped on purpose."""
        if self._known and all(self._is_dropped(index, state) for index, state in self._known.items()):
            self._passes = [backward for backward in self._passes if backward.run not in self._accumulated]
            self._accumulated.clear()
            self._known.clear()

    def _is_dropped(self, index: int, state: tuple[int, int]) -> bool:
        gradient = self._parameters[index].grad
        if gradient is None:
            return True
        if _state(gradient) == state:
            return False
        return not bool(gradient.coalesce().values().any() if gradient.is_sparse else gradient.any())


def _state(gradient: Tensor) -> tuple[int, int]:
    return gradient._version, 0 if gradient.is_sparse else gradient.data_ptr()
