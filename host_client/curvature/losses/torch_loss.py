"""Calls of torch's own losses: the arguments in float32 or float64, the loss as a sum, and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from host_client.curvature.errors import UnsupportedCriterion
from host_client.curvature.losses.arguments import Function
from host_client.curvature.losses.call import Kind, LossCall
from spu_link.cached import cached_property


class TorchLoss(LossCall):
    """A call of a function whose first argument is its input z.

    Args:
        criterion: the module or function called.
        function: the function.
        arguments: its arguments by name, as `bind` returns them.

    Raises:
        UnsupportedCriterion: for shapes that the loss would broadcast, so that its elements are not those of z.
    """

    curved: frozenset[str] = frozenset({"input"})
    """Arguments in which the exact curvature is known."""

    def __init__(self, criterion: Any, function: Function, arguments: dict[str, Any]) -> None:
        self.criterion, self.function, self.arguments = criterion, function, arguments
        self.z: Tensor = next(iter(arguments.values()))
        self.names = tuple(name for name, value in arguments.items() if getattr(value, "grad_fn", None) is not None)
        self._check_shapes()
        dims = self._dims()
        self.outputs = tuple(arguments[name] for name in self.names)
        self.element_dims = (dims,) * len(self.names)
        self.element_shape = torch.Size(size for dim, size in enumerate(self.z.shape) if dim not in dims)

    def _check_shapes(self) -> None:
        for name in self.names:
            if self.arguments[name].shape != self.z.shape:
                raise UnsupportedCriterion(
                    name,
                    f"is differentiated and has shape {tuple(self.arguments[name].shape)}, but the input has shape "
                    f"{tuple(self.z.shape)}; expand it to the shape of the input, or detach it",
                )

    def _dims(self) -> tuple[int, ...]:
        """Return the dimensions of z within one element."""
        return ()

    def _check_curvature(self, kind: Kind) -> None:
        for name in self.names:
            if name not in self.curved:
                raise UnsupportedCriterion(
                    name,
                    f"has a graph, and the curvature {kind!r} in it is not known; detach it, or choose "
                    "curvature='empirical'",
                )

    @cached_property
    def wide(self) -> dict[str, Any]:
        """The arguments without graphs, floating-point ones in float32, or in float64 if z is."""
        dtype = torch.float64 if self.z.dtype == torch.float64 else torch.float32

        def widen(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.detach().to(dtype) if value.is_floating_point() else value
            return value

        widened: dict[str, Any] = tree_map(widen, self.arguments)
        return widened

    def total(self, **replaced: Tensor) -> Tensor:
        """Return the loss with the reduction 'sum', some of the widened arguments replaced."""
        return self.function(**{**self.wide, **replaced, "reduction": "sum"})

    def divisor(self) -> Tensor | float:
        """Return what the reduction divides the sum by."""
        if self.arguments["reduction"] == "sum":
            return 1.0
        divisor = self._mean_divisor()
        if isinstance(divisor, Tensor):
            # Of nothing the mean is 0 / 0, but then no element has any mass.
            return divisor.clamp_min(torch.finfo(divisor.dtype).tiny)
        return max(divisor, 1.0)

    def _mean_divisor(self) -> Tensor | float:
        """Return what 'mean' divides by."""
        return float(self.z.numel())

    def _empirical(self) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            variables = {name: self.wide[name].detach().requires_grad_() for name in self.names}
            gradients = torch.autograd.grad(self.total(**variables), tuple(variables.values()))
        return tuple(gradient / self.divisor() ** 0.5 for gradient in gradients)
