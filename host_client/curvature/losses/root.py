"""The curvature of a criterion with respect to its input, as columns whose outer products sum to it."""

from __future__ import annotations

import copy
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from host_client.curvature.errors import UnsupportedCriterion
from host_client.curvature.losses.base import Loss
from host_client.curvature.losses.binary_cross_entropy import BinaryCrossEntropy
from host_client.curvature.losses.cross_entropy import CrossEntropy
from host_client.curvature.losses.mean_squared_error import MeanSquaredError
from host_client.curvature.losses.positions import spread

Kind: TypeAlias = Literal["exact", "mc", "empirical"]
"""Which curvature: the exact generalised Gauss–Newton matrix, the Monte-Carlo Fisher, or the empirical Fisher."""

LOSSES: tuple[Loss, ...] = (CrossEntropy(), BinaryCrossEntropy(), MeanSquaredError())


def check_criterion(criterion: nn.Module) -> None:
    """Refuse a criterion, or options of it, whose curvature is not known here. Made for once, before training.

    Raises:
        UnsupportedCriterion: naming the option and the way out.
        TypeError: when it is no module.
    """
    if not isinstance(criterion, nn.Module):
        raise TypeError(
            f"Invalid criterion: a {type(criterion).__name__}; give a module, such as nn.CrossEntropyLoss()"
        )
    _loss_of(criterion).check(criterion)


@torch.no_grad()
def loss_columns(criterion: nn.Module, z: Tensor, target: Tensor, *, samples: int, kind: Kind, draws: int) -> int:
    """Number c of columns that `loss_root` would return, before they are made.

    Raises:
        UnsupportedCriterion: as `loss_root`.
    """
    if kind != "exact":
        return draws if kind == "mc" else 1
    loss = _loss_of(criterion)
    _check_shapes(loss, z, target, samples)
    d = loss.dimension(z.shape)
    width = positions = z.numel() // (samples * d)
    if positions > 1 and loss.leaves_out(target):
        mass, _ = _weights(loss, criterion, _wide(z), target, samples)
        width = _width(mass)
    return width * loss.rank(d)


@torch.no_grad()
def loss_root(
    criterion: nn.Module,
    z: Tensor,
    target: Tensor,
    *,
    samples: int,
    kind: Kind,
    draws: int,
    generator: torch.Generator | None,
    columns: int | None = None,
) -> Tensor:
    """Cotangents of a criterion's input whose outer products, over samples and columns, are its curvature.

    With J the Jacobian of z, and A = Sᵀ J row by row (row (k, i) from column k of sample i), F = AᵀA is for

    - ``"exact"``: Jᵀ H J with H the Hessian of the criterion as it reduces: the generalised Gauss–Newton matrix. A
      sample has one column for each output of rank: d − 1 for each position of a cross-entropy over d classes, one for
      each output otherwise. Positions that the loss leaves out (``ignore_index``, classes of weight zero) have none:
      c is that of the sample with most.
    - ``"mc"``: the same in expectation, from `draws` columns: the gradients for labels drawn anew from the model's own
      distribution, independently at all positions and in all columns, scaled by 1/√draws.
    - ``"empirical"``: (1/n) Σ_i g_i g_iᵀ with g_i the gradient of sample i's own loss for the targets given, summed
      over its positions, and n what the criterion's mean divides by: Σ w_{y} over the targets not ignored, the number
      of elements for probabilities, the number of outputs for MSE and BCE; 1 for the reduction 'sum'. One column.

    Nothing waits for an accelerator, but for one number where a cross-entropy with class targets has several positions
    a sample: how many of them count.

    Args:
        criterion: accepted by `check_criterion`.
        z: its input: samples lead, or samples and positions flattened into the leading dimension, sample by sample.
            In float16 and bfloat16 the columns are computed in float32.
        target: its target.
        samples: b.
        kind: which curvature.
        draws: number of columns of the Monte-Carlo Fisher, at least one.
        generator: of the labels drawn, on the device of z; None for torch's own.
        columns: c, where `loss_columns` has found it.

    Returns:
        Shape (c, *z.shape), the dtype of z: in sample i column k holds what belongs to sample i.

    Raises:
        UnsupportedCriterion: for a criterion not known, and for shapes that do not fit.
        ValueError: for another kind, or fewer than one draw.
    """
    loss, wide = _loss_of(criterion), _wide(z)
    _check_shapes(loss, wide, target, samples)
    elements = loss.elements(wide, samples)
    if columns is None:
        columns = loss_columns(criterion, z, target, samples=samples, kind=kind, draws=draws)
    mass, divisor = _weights(loss, criterion, wide, target, samples)
    if kind == "exact":
        # Rounded first: what is spread is several times as much.
        width = columns // loss.rank(loss.dimension(z.shape))
        found = spread(loss.root(elements, mass).to(z.dtype), mass, width)
    elif kind == "mc":
        if draws < 1:
            raise ValueError(f"{draws} Monte-Carlo samples; at least one is needed")
        found = loss.scores(elements, mass / draws, draws, generator)
    elif kind == "empirical":
        return (_gradient(criterion, wide, target) * divisor**0.5).to(z.dtype)[None]
    else:
        raise ValueError(f"curvature {kind!r} is not known; choose 'exact', 'mc' or 'empirical'")
    return loss.restore(found, z.shape).to(z.dtype)


def _loss_of(criterion: nn.Module) -> Loss:
    for loss in LOSSES:
        # A forward of its own, in a subclass or on the instance, is free to compute something else.
        if getattr(criterion.forward, "__func__", None) is loss.criterion.forward:
            return loss
    known = ", ".join(f"nn.{loss.criterion.__name__}" for loss in LOSSES)
    raise UnsupportedCriterion(
        "",
        f"is {type(criterion).__name__}, whose curvature is not known; use one of {known}, with a forward that is "
        "torch's, or give the optimizer an operator of your own (curvature=a function that returns it)",
    )


def _wide(z: Tensor) -> Tensor:
    return z.detach() if z.dtype == torch.float64 else z.detach().float()


def _check_shapes(loss: Loss, z: Tensor, target: Tensor, samples: int) -> None:
    loss.check_shapes(z, target)
    if z.dim() == 0 or len(z) % samples:
        raise UnsupportedCriterion(
            "",
            f"was given an input of shape {tuple(z.shape)} for {samples} samples; its first dimension must hold all "
            "samples, or all their positions, sample by sample",
        )


def _weights(loss: Loss, criterion: Any, z: Tensor, target: Tensor, samples: int) -> tuple[Tensor, Tensor | float]:
    """Mass of each element as the criterion reduces, shape (b, q) or (1, 1), and what it divides by."""
    mass, divisor = loss.weights(criterion, z, target)
    if criterion.reduction == "sum":
        divisor = 1.0
    if mass is None:
        return z.new_full((1, 1), 1 / float(divisor)), divisor
    if isinstance(divisor, Tensor):
        # Of nothing the mean is 0 / 0, but no element is left whose mass it could spoil.
        divisor = divisor.clamp_min(torch.finfo(z.dtype).tiny)
    return (mass / divisor).reshape(samples, -1), divisor


def _width(mass: Tensor) -> int:
    """Most positions of a sample that count: at least one, so that an operator is left. Waits for the value."""
    return max(1, int((mass != 0).sum(1).max()))


def _gradient(criterion: nn.Module, z: Tensor, target: Tensor) -> Tensor:
    if any(buffer.dtype != z.dtype for buffer in criterion.buffers()):
        criterion = copy.deepcopy(criterion).to(z.dtype)
    if target.is_floating_point():
        target = target.to(z.dtype)
    with torch.enable_grad():
        z = z.requires_grad_()
        return torch.autograd.grad(criterion.forward(z, target), z)[0]
