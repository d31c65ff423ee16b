"""Torch's losses: as a module, as a function, and with the curvature that is right for them.

Right is the Hessian of the loss in the criterion's input where that is positive semi-definite and tells something. For
a log-likelihood of which it is not (log-probabilities, a variance), right is the Fisher matrix, which for a softmax is
the Hessian in the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.host_client.kinds.reference import classes, double

SAMPLES, OUTPUTS = 6, 3


@dataclass(frozen=True)
class Loss:
    """A loss of outputs (6, 3) of a network.

    Attributes:
        module: the criterion.
        function: the same as torch's function of what the criterion takes.
        recognised: torch's function itself, as it is given to the capture.
        targets: what the outputs should be.
        given: what the criterion takes, of the network's outputs; by default those.
        smooth: a loss of the outputs whose Hessian is the right one; by default the function itself.
        divisor: what the mean divides by.
        elements: the loss of each sample, summed over its outputs, of what the criterion takes.
        several: whether the criterion takes a third tensor, that `given` makes too.
    """

    module: nn.Module
    function: Callable[..., Tensor]
    recognised: Callable[..., Tensor]
    targets: Tensor
    elements: Callable[[Tensor, Tensor], Tensor]
    divisor: float = SAMPLES
    given: Callable[[Tensor], Tensor] = lambda z: z
    smooth: Callable[[Tensor, Tensor], Tensor] | None = None


LABELS, REAL, SIGNS = classes(SAMPLES), double(SAMPLES, OUTPUTS, seed=4), double(SAMPLES, OUTPUTS, seed=5)
BITS, SOFT, COUNTS = (SIGNS > 0).double(), SIGNS.softmax(1), (2 * REAL.abs()).round()
HOLES = torch.tensor([0, -100, 2, 1, -100, 1])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
ALL = SAMPLES * OUTPUTS


def _of(function: Callable[..., Tensor], **options: object) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, t: function(z, t, **options)


def _sums(function: Callable[..., Tensor], **options: object) -> Callable[[Tensor, Tensor], Tensor]:
    """The losses of the samples."""

    def losses(z: Tensor, t: Tensor) -> Tensor:
        loss: Tensor = function(z, t, reduction="none", **options)
        return loss.flatten(1).sum(1) if loss.dim() > 1 else loss

    return losses


def _loss(
    module: nn.Module, recognised: Callable[..., Tensor], targets: Tensor, divisor: float, **options: object
) -> Loss:
    return Loss(module, _of(recognised, **options), recognised, targets, _sums(recognised, **options), divisor)


def _derived(loss: Loss, given: Callable[[Tensor], Tensor], smooth: Callable[[Tensor, Tensor], Tensor] | None) -> Loss:
    return Loss(loss.module, loss.function, loss.recognised, loss.targets, loss.elements, loss.divisor, given, smooth)


def _quadratic(p: Tensor, t: Tensor) -> Tensor:
    """A function with the Hessian of the binary cross-entropy in the probabilities p, where they are."""
    here = p.detach()
    return (0.5 * (t / here**2 + (1 - t) / (1 - here) ** 2) * (p - here) ** 2).mean()


PLAIN: dict[str, Loss] = {
    "cross entropy": _loss(nn.CrossEntropyLoss(), F.cross_entropy, LABELS, SAMPLES),
    "cross entropy, ignored": _loss(nn.CrossEntropyLoss(), F.cross_entropy, HOLES, 4),
    "cross entropy, smoothed": _loss(
        nn.CrossEntropyLoss(label_smoothing=0.1), F.cross_entropy, LABELS, SAMPLES, label_smoothing=0.1
    ),
    "cross entropy, weighted": _loss(
        nn.CrossEntropyLoss(weight=WEIGHTS), F.cross_entropy, LABELS, float(WEIGHTS[LABELS].sum()), weight=WEIGHTS
    ),
    "cross entropy of probabilities": _loss(nn.CrossEntropyLoss(), F.cross_entropy, SOFT, SAMPLES),
    "mean squared error": _loss(nn.MSELoss(), F.mse_loss, REAL, ALL),
    "binary cross entropy with logits": _loss(nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, BITS, ALL),
    "binary cross entropy, positives weighted": _loss(
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), F.binary_cross_entropy_with_logits, BITS, ALL, pos_weight=WEIGHTS
    ),
}
"""Those that a6845ae takes as modules."""

NEW: dict[str, Loss] = {
    "negative log-likelihood": _derived(
        _loss(nn.NLLLoss(), F.nll_loss, LABELS, SAMPLES), lambda z: z.log_softmax(1), F.cross_entropy
    ),
    "negative log-likelihood, weighted": _derived(
        _loss(nn.NLLLoss(weight=WEIGHTS), F.nll_loss, LABELS, float(WEIGHTS[LABELS].sum()), weight=WEIGHTS),
        lambda z: z.log_softmax(1),
        _of(F.cross_entropy, weight=WEIGHTS),
    ),
    "negative log-likelihood, ignored": _derived(
        _loss(nn.NLLLoss(), F.nll_loss, HOLES, 4), lambda z: z.log_softmax(1), F.cross_entropy
    ),
    "smooth L1": _loss(nn.SmoothL1Loss(beta=0.7), F.smooth_l1_loss, REAL, ALL, beta=0.7),
    "Huber": _loss(nn.HuberLoss(delta=0.6), F.huber_loss, REAL, ALL, delta=0.6),
    "binary cross entropy": _derived(
        _loss(nn.BCELoss(), F.binary_cross_entropy, BITS, ALL),
        lambda z: z.sigmoid(),
        lambda z, t: _quadratic(z.sigmoid(), t),
    ),
    "Poisson": _loss(nn.PoissonNLLLoss(), F.poisson_nll_loss, COUNTS, ALL),
    "Kullback-Leibler": _derived(
        Loss(
            nn.KLDivLoss(reduction="batchmean"), _of(F.kl_div, reduction="batchmean"), F.kl_div, SOFT, _sums(F.kl_div)
        ),
        lambda z: z.log_softmax(1),
        F.cross_entropy,
    ),
}
"""Those that it refuses."""
