"""Base class of the captures of curvature."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict, get_args

import torch.distributed
from torch import nn
from torch.utils.hooks import RemovableHandle

from host_client.curvature.errors import UnsupportedProcessGroup
from host_client.curvature.gradients import Gradients, GradScaler
from host_client.curvature.trained import trained_parameters
from host_client.names import Kind
from spu_link.operators import Operator


class CaptureOptions(TypedDict, total=False):
    """Keyword arguments of every capture; `Capture` says what they mean."""

    curvature: Kind
    samples: int
    grad_scaler: GradScaler | None
    parameters: Iterable[nn.Parameter] | None


class BaseCapture(ABC):
    """Hooks on a model and its losses that give the curvature F of the losses whose gradients the parameters hold.

    Arguments and errors are those of `Capture`.

    Attributes:
        paused: while true, losses are not captured.
        step: number of the step to come, from 1, for messages; the optimizer sets it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        curvature: Kind,
        samples: int,
        grad_scaler: GradScaler | None,
        parameters: Iterable[nn.Parameter] | None,
    ) -> None:
        if curvature not in get_args(Kind):
            raise ValueError(f"Invalid curvature: {curvature!r}; it must be 'exact', 'mc' or 'empirical'")
        if samples < 1:
            raise ValueError(f"Invalid samples: {samples}; at least one label must be drawn")
        check_processes()
        self.model, self.paused, self.step = model, False, 1
        self._parameters = trained_parameters(model, parameters)
        self._gradients = Gradients([parameter for _, parameter in self._parameters], grad_scaler)
        self._removals: list[Callable[[], None]] = [self._gradients.close]
        self._remove_hooks = weakref.finalize(self, _call_all, self._removals)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trained parameters with their dotted paths, in the order of the operator's columns."""
        return list(self._parameters)

    @abstractmethod
    def operator_of_gradients(self) -> Operator:
        """Return F of the losses whose gradients the parameters hold.

        Raises:
            RuntimeError: when no backward pass through a captured loss has added to them.
            UnsupportedProcessGroup: when several processes train together.
        """

    def forget_gradients(self) -> None:
        """Start over: the parameters' gradients have been dropped."""
        self._gradients.forget()

    def finish_step(self) -> None:
        """Start over: a step has used the gradients. A loss that is kept holds no curvature any more."""
        self._gradients.release()

    def own(self, *handles: RemovableHandle) -> None:
        """Remove these hooks of the model when the capture is closed, or gone."""
        self._removals.extend(handle.remove for handle in handles)

    def close(self) -> None:
        """Remove the hooks and release what was captured. The model is as it was."""
        self._remove_hooks()


def check_processes() -> None:
    """Refuse a process group of several ranks: their gradients are averaged, and F would be that of one rank alone.

    Raises:
        UnsupportedProcessGroup: naming what to do.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise UnsupportedProcessGroup(distributed.get_world_size())


def _call_all(functions: Sequence[Callable[[], None]]) -> None:
    for function in functions:
        function()
