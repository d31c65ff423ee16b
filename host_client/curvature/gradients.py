"""Which losses the parameters' gradients are those of."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from spu_link.operators import LayerRows, stack


class GradScaler(Protocol):
    """What is asked of a `torch.amp.GradScaler`."""

    def get_scale(self) -> float:
        """The factor that losses are multiplied with."""
        ...


class _Differentiated(NamedTuple):
    """A backward pass through a captured loss: with which factor the loss was multiplied, and in which engine run."""

    operator: LayerRows
    columns: int
    factor: Tensor
    run: int


class Gradients:
    """The curvatures of the losses whose gradients the parameters hold, one for each backward pass.

    Args:
        parameter: one of the parameters; where its gradient is gone, those of all have been dropped.
        grad_scaler: the scaler that multiplies the losses, if any.
    """

    def __init__(self, parameter: nn.Parameter, grad_scaler: GradScaler | None) -> None:
        self._parameter, self._grad_scaler = parameter, grad_scaler
        self._passes: list[_Differentiated] = []

    def follow(self, loss: Tensor, operator: LayerRows, columns: int) -> None:
        """Note when a loss is differentiated whose curvature is `operator`, of so many rows a sample."""
        loss.register_hook(partial(self._note, operator, columns))

    def operators(self) -> list[LayerRows]:
        """Those of the backward passes, in their order."""
        if self._parameter.grad is None:  # they have been dropped, by ``model.zero_grad()`` for instance
            return []
        return [one.operator for one in self._passes]

    def combined(self) -> LayerRows | None:
        """The curvature of them all, see `Capture.operator_of_gradients`; None without a backward pass.

        Raises:
            RuntimeError: when the passes cannot be added up.
        """
        if not self._passes:
            return None
        if len(self._passes) == 1:
            return self._passes[0].operator
        scale = 1.0 if self._grad_scaler is None else self._grad_scaler.get_scale()
        weights = [float(one.factor) / scale for one in self._passes]
        if max(weights) > 1.0 + 1e-6 or min(weights) < 0.0:
            raise RuntimeError(
                f"the losses of {len(weights)} backward passes were differentiated with factors {weights}; give the "
                "optimizer the grad_scaler that multiplies them, and divide each loss by the number of passes"
            )
        columns = [one.columns for one in self._passes]
        return stack([one.operator for one in self._passes], weights, columns)

    def forget(self) -> None:
        """The gradients have been used, or set to zero."""
        self._passes.clear()

    def _note(self, operator: LayerRows, columns: int, factor: Tensor) -> None:
        """Hook on a loss: its gradients are on their way."""
        run: int = torch._C._current_graph_task_id()
        if self._parameter.grad is None:
            # What earlier runs had added up has been dropped since.
            self._passes = [one for one in self._passes if one.run == run]
        self._passes.append(_Differentiated(operator, columns, factor.detach(), run))
