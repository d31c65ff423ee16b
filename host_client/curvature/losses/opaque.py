"""Calls of losses whose gradient alone is known."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from host_client.curvature.errors import UnsupportedCriterion
from host_client.curvature.losses.arguments import check_reduction
from host_client.curvature.losses.call import Kind, LossCall


class Opaque(LossCall):
    """A call of any module: the empirical Fisher alone, from the gradient of its result.

    The outputs are all tensors with a graph among its arguments, also in lists and dicts, with samples in dimension 0;
    an element is a sample. The mean is taken to divide by the number of samples, unless the module has the attribute
    ``reduction`` with the value 'sum'.

    Raises:
        UnsupportedCriterion: for outputs of different lengths, and a result that is not a single number.
    """

    def __init__(self, criterion: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor | None) -> None:
        self.criterion, self._result = criterion, result
        self._reduction = getattr(criterion, "reduction", "mean")
        check_reduction("sum" if self._reduction != "none" else "none")
        leaves = tree_leaves((args, kwargs))
        self.outputs = tuple(x for x in leaves if isinstance(x, Tensor) and x.grad_fn is not None)
        lengths = {len(z) if z.dim() else None for z in self.outputs}
        if len(lengths) > 1 or None in lengths or (result is not None and result.numel() != 1):
            raise UnsupportedCriterion(
                "",
                f"is {type(criterion).__name__}, called with differentiated arguments of shapes "
                f"{[tuple(z.shape) for z in self.outputs]} and a result of shape "
                f"{None if result is None else tuple(result.shape)}; for curvature='empirical' all of them must have "
                "the samples in dimension 0, and the result must be a single number",
            )
        self.element_dims = tuple(tuple(range(1, z.dim())) for z in self.outputs)
        self.element_shape = torch.Size(length for length in lengths if length is not None)

    def _check_curvature(self, kind: Kind) -> None:
        refuse(self.criterion)

    @property
    def _rank(self) -> int:
        refuse(self.criterion)

    def _exact(self) -> tuple[Tensor, ...]:
        refuse(self.criterion)

    def _monte_carlo(self, draws: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        refuse(self.criterion)

    def _empirical(self) -> tuple[Tensor, ...]:
        if self._result is None:
            raise ValueError(
                f"the empirical Fisher of {type(self.criterion).__name__} needs the result of its call; pass it to "
                "loss_call"
            )
        divisor = 1 if self._reduction == "sum" else self.element_shape[0]
        gradients = torch.autograd.grad(self._result, self.outputs, retain_graph=True, materialize_grads=True)
        return tuple(gradient * divisor**0.5 for gradient in gradients)


def refuse(criterion: Any) -> NoReturn:
    """Raise UnsupportedCriterion for a loss whose Hessian is not known."""
    raise UnsupportedCriterion(
        "",
        f"is {type(criterion).__name__}, whose curvature is not known; use one of torch's losses, with a forward that "
        "is torch's, derive your own from PerSampleLoss, choose curvature='empirical', or give the optimizer an "
        "operator of your own (curvature=a function that returns it)",
    )
