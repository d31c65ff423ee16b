"""Which losses the capture knows the curvature of."""

from __future__ import annotations

from torch import Tensor, nn

from host_client.curvature.errors import UnsupportedCriterion

DEFAULT_IGNORE_INDEX = -100
"""torch's own default; it means "no sample is left out" only while no target has this value."""


def check_criterion(criterion: nn.Module) -> nn.CrossEntropyLoss:
    """The criterion, if it is a cross-entropy whose Hessian is that of the plain softmax.

    Raises:
        UnsupportedCriterion: naming the option that is not supported.
    """
    if type(criterion) is not nn.CrossEntropyLoss:
        raise UnsupportedCriterion("", f"is {type(criterion).__name__}; only nn.CrossEntropyLoss is supported")
    if criterion.weight is not None:
        raise UnsupportedCriterion("weight", "weighs the classes, which is not supported; leave it at None")
    if criterion.label_smoothing != 0.0:
        raise UnsupportedCriterion(
            "label_smoothing", f"is {criterion.label_smoothing}, which is not supported; leave it at 0.0"
        )
    if criterion.ignore_index != DEFAULT_IGNORE_INDEX:
        raise UnsupportedCriterion(
            "ignore_index", f"is {criterion.ignore_index}, which is not supported; leave such samples out of the batch"
        )
    if criterion.reduction not in ("mean", "sum"):
        raise UnsupportedCriterion("reduction", f"is {criterion.reduction!r}; choose 'mean' or 'sum'")
    return criterion


def check_targets(target: Tensor) -> None:
    """Refuse class indices that the loss leaves out: the curvature would count them.

    Raises:
        UnsupportedCriterion: when a target is the criterion's ``ignore_index``.
    """
    if not target.is_floating_point() and bool((target == DEFAULT_IGNORE_INDEX).any()):
        raise UnsupportedCriterion(
            "ignore_index",
            f"({DEFAULT_IGNORE_INDEX}) is among the targets; leave such samples out of the batch",
        )
