"""Torch's losses as functions, and with the curvature that is right for them.

Right is the Hessian of the loss in the criterion's input where that is positive semi-definite and not zero. For
a log-likelihood of which it is not (log-probabilities, a variance), right is the Fisher matrix, which for a softmax is
the Hessian in the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.host_client.kinds.reference import classes, double

SAMPLES, OUTPUTS = 6, 3


@dataclass(frozen=True)
class Loss:
    """A loss of outputs (6, 3) of a network.

    Attributes:
        recognised: torch's function itself, as it is given to the capture.
        targets: what the outputs should be.
        options: of the function.
        given: what the function takes, of the network's outputs; by default those.
        smooth: a loss of the outputs whose Hessian is the right one; by default the function itself.
    """

    recognised: Callable[..., Tensor]
    targets: Tensor
    options: dict[str, object] = field(default_factory=dict)
    given: Callable[[Tensor], Tensor] = lambda z: z
    smooth: Callable[[Tensor, Tensor], Tensor] | None = None

    def function(self, z: Tensor, t: Tensor) -> Tensor:
        """The loss of what the function takes."""
        return self.recognised(z, t, **self.options)


LABELS, REAL, SIGNS = classes(SAMPLES), double(SAMPLES, OUTPUTS, seed=4), double(SAMPLES, OUTPUTS, seed=5)
BITS, SOFT, COUNTS = (SIGNS > 0).double(), SIGNS.softmax(1), (2 * REAL.abs()).round()
HOLES = torch.tensor([0, -100, 2, 1, -100, 1])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def _quadratic(p: Tensor, t: Tensor) -> Tensor:
    """A function with the Hessian of the binary cross-entropy in the probabilities p, where they are."""
    here = p.detach()
    return (0.5 * (t / here**2 + (1 - t) / (1 - here) ** 2) * (p - here) ** 2).mean()


def _log_softmax(z: Tensor) -> Tensor:
    return z.log_softmax(1)


def _weighted(z: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(z, t, weight=WEIGHTS)


LOSSES: dict[str, Loss] = {
    "cross entropy": Loss(F.cross_entropy, LABELS),
    "cross entropy, ignored": Loss(F.cross_entropy, HOLES),
    "cross entropy, smoothed": Loss(F.cross_entropy, LABELS, {"label_smoothing": 0.1}),
    "cross entropy, weighted": Loss(F.cross_entropy, LABELS, {"weight": WEIGHTS}),
    "cross entropy of probabilities": Loss(F.cross_entropy, SOFT),
    "mean squared error": Loss(F.mse_loss, REAL),
    "binary cross entropy with logits": Loss(F.binary_cross_entropy_with_logits, BITS),
    "binary cross entropy, positives weighted": Loss(F.binary_cross_entropy_with_logits, BITS, {"pos_weight": WEIGHTS}),
    "negative log-likelihood": Loss(F.nll_loss, LABELS, given=_log_softmax, smooth=F.cross_entropy),
    "negative log-likelihood, weighted": Loss(
        F.nll_loss, LABELS, {"weight": WEIGHTS}, given=_log_softmax, smooth=_weighted
    ),
    "negative log-likelihood, ignored": Loss(F.nll_loss, HOLES, given=_log_softmax, smooth=F.cross_entropy),
    "smooth L1": Loss(F.smooth_l1_loss, REAL, {"beta": 0.7}),
    "Huber": Loss(F.huber_loss, REAL, {"delta": 0.6}),
    "binary cross entropy": Loss(
        F.binary_cross_entropy, BITS, given=torch.sigmoid, smooth=lambda z, t: _quadratic(z.sigmoid(), t)
    ),
    "Poisson": Loss(F.poisson_nll_loss, COUNTS),
    "Kullback-Leibler": Loss(F.kl_div, SOFT, {"reduction": "batchmean"}, given=_log_softmax, smooth=F.cross_entropy),
}
