"""Select the curvature of a loss: by torch's modules and functions, for a loss of one's own, and for any other."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from host_client.curvature.losses.arguments import Function, bind, check_reduction, check_weights, options
from host_client.curvature.losses.call import Kind, LossCall, check_kind
from host_client.curvature.losses.cross_entropy import CrossEntropy
from host_client.curvature.losses.elementwise import ElementwiseLoss, check_curved
from host_client.curvature.losses.gaussian import GaussianNLL
from host_client.curvature.losses.log_probabilities import NLL, KLDiv
from host_client.curvature.losses.opaque import Opaque, refuse
from host_client.curvature.losses.per_sample import PerSampleCall, PerSampleLoss
from host_client.curvature.losses.torch_loss import TorchLoss

LOSSES: dict[Function, tuple[type[nn.Module], type[TorchLoss]]] = {
    F.cross_entropy: (nn.CrossEntropyLoss, CrossEntropy),
    F.nll_loss: (nn.NLLLoss, NLL),
    F.kl_div: (nn.KLDivLoss, KLDiv),
    F.gaussian_nll_loss: (nn.GaussianNLLLoss, GaussianNLL),
    F.mse_loss: (nn.MSELoss, ElementwiseLoss),
    F.l1_loss: (nn.L1Loss, ElementwiseLoss),
    F.smooth_l1_loss: (nn.SmoothL1Loss, ElementwiseLoss),
    F.huber_loss: (nn.HuberLoss, ElementwiseLoss),
    F.binary_cross_entropy: (nn.BCELoss, ElementwiseLoss),
    F.binary_cross_entropy_with_logits: (nn.BCEWithLogitsLoss, ElementwiseLoss),
    F.poisson_nll_loss: (nn.PoissonNLLLoss, ElementwiseLoss),
    F.soft_margin_loss: (nn.SoftMarginLoss, ElementwiseLoss),
}
"""Each function with the module that calls it, and the class of its calls."""

FUNCTIONS = tuple(LOSSES)
"""The functions of torch that are losses whose curvature is known."""


def check_criterion(criterion: Any, kind: Kind) -> None:
    """Refuse a loss, or options of it, whose curvature is not known, before training.

    Args:
        criterion: one of torch's losses or of their functions, or a `PerSampleLoss`; any module for ``"empirical"``.
        kind: which curvature.

    Raises:
        UnsupportedCriterion: naming the option and what to use instead.
        TypeError: when it is neither a module nor one of torch's functions.
        ValueError: for an unknown kind.
    """
    check_kind(kind)
    function = _function(criterion)
    if function is not None:
        module = LOSSES[function][0]
        chosen = options(criterion, function, module) if isinstance(criterion, nn.Module) else {}
        if chosen:
            check_reduction(chosen["reduction"], batchmean=module is nn.KLDivLoss)
            check_weights(chosen)
        if kind != "empirical":
            check_curved(function, chosen)
    elif not isinstance(criterion, nn.Module):
        raise TypeError(
            f"Invalid criterion: a {type(criterion).__name__}; give a module, such as nn.CrossEntropyLoss(), one of "
            "torch's functions, such as F.cross_entropy, or a PerSampleLoss for a loss of your own"
        )
    elif not _is_per_sample(criterion) and kind != "empirical":
        refuse(criterion)


def loss_call(criterion: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor | None) -> LossCall:
    """Return the curvature of one call of a loss.

    Args:
        criterion: accepted by `check_criterion`.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        result: the loss it returned, with its graph, for the empirical Fisher of a module that is not known; None
            otherwise.

    Raises:
        UnsupportedCriterion: for options and shapes that are not supported.
        TypeError: as `check_criterion`.
    """
    function = _function(criterion)
    if function is not None:
        module, call = LOSSES[function]
        return call(criterion, function, bind(criterion, function, module, args, kwargs))
    if _is_per_sample(criterion):
        bound = inspect.signature(PerSampleLoss.forward).bind(criterion, *args, **kwargs)
        _, output, target = bound.args
        return PerSampleCall(criterion, criterion.forward, {"output": output, "target": target})
    check_criterion(criterion, "empirical")
    return Opaque(criterion, args, kwargs, result)


def _function(criterion: Any) -> Function | None:
    """Return the function of torch that a criterion is, or calls; None if there is none."""
    for function, (module, _) in LOSSES.items():
        if criterion is function or _has_forward(criterion, module):
            return function
    return None


def _is_per_sample(criterion: Any) -> bool:
    return isinstance(criterion, PerSampleLoss) and _has_forward(criterion, PerSampleLoss)


def _has_forward(criterion: Any, module: type[nn.Module]) -> bool:
    # A forward of its own, in a subclass or on the instance, is free to compute something else.
    return getattr(getattr(criterion, "forward", None), "__func__", None) is module.forward
