"""The arguments of a loss, the same for a module and for the function that it calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from host_client.curvature.errors import UnsupportedCriterion

Function = Callable[..., Tensor]

_signature = functools.cache(inspect.signature)

LEGACY = ("size_average", "reduce")


def bind(criterion: Any, function: Function, module: type[nn.Module], args: Any, kwargs: Any) -> dict[str, Any]:
    """Return all arguments of the function by name, defaults included, for a call of the function or its module.

    Raises:
        UnsupportedCriterion: for the deprecated arguments, and for the reduction 'none'.
        TypeError: for arguments that the function does not take.
    """
    if isinstance(criterion, nn.Module):
        # In order, for modules name their inputs differently.
        args = _signature(module.forward).bind(criterion, *args, **kwargs).args[1:]
        kwargs = options(criterion, function, module)
    bound = _signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = bound.arguments
    for name in LEGACY:
        if arguments.pop(name, None) is not None:
            raise UnsupportedCriterion(
                name, "is deprecated in torch and not supported; use reduction='mean' or reduction='sum' instead"
            )
    check_reduction(arguments["reduction"], batchmean=module is nn.KLDivLoss)
    return arguments


def options(criterion: nn.Module, function: Function, module: type[nn.Module]) -> dict[str, Any]:
    """Return the options that torch's module passes to its function, by the function's names for them."""
    taken = set(_signature(module.__init__).parameters) & set(_signature(function).parameters)
    return {name: getattr(criterion, name) for name in sorted(taken - set(LEGACY))}


def check_reduction(reduction: str, *, batchmean: bool = False) -> None:
    """Raise UnsupportedCriterion for a reduction that returns no single loss."""
    if reduction not in ("mean", "sum") and not (batchmean and reduction == "batchmean"):
        raise UnsupportedCriterion(
            "reduction",
            f"is {reduction!r}, which has no single loss to differentiate; choose 'mean' or 'sum'",
        )


_NONNEGATIVE = WeakIdKeyDictionary()
"""Versions of the weights found to be at least zero: an accelerator is waited for once a tensor, not once a step."""


def check_weights(options: dict[str, Any]) -> None:
    """Refuse negative weights, which make the curvature indefinite.

    Raises:
        UnsupportedCriterion: naming the option.
    """
    for name in ("weight", "pos_weight"):
        weight = options.get(name)
        if weight is None or _NONNEGATIVE.get(weight) == weight._version:
            continue
        if not bool((weight >= 0).all()):
            raise UnsupportedCriterion(
                name, f"has an entry of {weight.min().item():g}, which makes the loss unbounded below; use weights ≥ 0"
            )
        _NONNEGATIVE[weight] = weight._version
