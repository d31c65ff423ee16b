"""Losses in which every output is an element: their second derivatives, by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from host_client.curvature.errors import UnsupportedCriterion
from host_client.curvature.losses.arguments import Function
from host_client.curvature.losses.call import Kind, random_signs
from host_client.curvature.losses.convexity import positive_part
from host_client.curvature.losses.torch_loss import TorchLoss

CLOSED_FORMS: dict[Function, tuple[float, Callable[[Tensor, Tensor], Tensor]]] = {
    F.binary_cross_entropy_with_logits: (0.0, lambda z, t: 4 * z.sigmoid() * z.neg().sigmoid()),
    F.soft_margin_loss: (0.0, lambda z, t: 4 * (z * t).sigmoid() * (z * t).neg().sigmoid()),
    # Probabilities are bounded as in torch's own gradient.
    F.binary_cross_entropy: (
        0.5,
        lambda p, t: (t / p.clamp_min(1e-12) ** 2 + (1 - t) / (1 - p).clamp_min(1e-12) ** 2) / 4,
    ),
}
"""A point z₀, and ℓ''(z, t) / ℓ''(z₀, t), where autograd's ℓ'' loses its digits or overflows far from z₀."""

DIFFERENCES = frozenset({F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss})
"""Losses of input − target: symmetric in the two, so that either, or both, may come from the model."""

MEAN_BY_WEIGHT = frozenset({F.mse_loss, F.l1_loss})
"""Losses whose mean divides by the sum of the weights."""


class ElementwiseLoss(TorchLoss):
    """A loss Σ_e ℓ(z_e, t_e): each output is an element, with Hessian ℓ''.

    The second derivative is that of the function itself, so that its options and weights are those of torch. The
    Monte-Carlo root draws targets from the model's distribution for MSE (normal about z with variance ½) and binary
    cross-entropy with logits (1 with probability σ(z)), and random signs for √ℓ'' otherwise.
    """

    def _check_shapes(self) -> None:
        super()._check_shapes()
        target = self.arguments["target"]
        if self.z.shape != target.shape:
            raise UnsupportedCriterion(
                "",
                f"was given a target of shape {tuple(target.shape)} for an input of shape {tuple(self.z.shape)}; "
                "give both one shape",
            )
        if self.function in DIFFERENCES:
            self.curved = frozenset({"input", "target"})

    def _check_curvature(self, kind: Kind) -> None:
        super()._check_curvature(kind)
        check_curved(self.function, self.arguments)

    def _mean_divisor(self) -> Tensor | float:
        weights: list[Tensor] = [w for w in (self.wide.get("weight"), self.wide.get("pos_weight")) if w is not None]
        if weights and self.function in MEAN_BY_WEIGHT:
            return weights[0].sum()
        return float(torch.broadcast_shapes(self.z.shape, *(w.shape for w in weights)).numel())

    @property
    def _rank(self) -> int:
        return 1

    def _exact(self) -> tuple[Tensor, ...]:
        return self._of_outputs(self._curvature().sqrt()[None])

    def _monte_carlo(self, draws: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        z, shape = self.wide["input"], (draws, *self.z.shape)
        if self.function is F.binary_cross_entropy_with_logits:
            p = z.sigmoid()
            heads = torch.rand(shape, dtype=z.dtype, device=z.device, generator=generator) < p
            mass = 4 * self._second_derivative(torch.zeros_like(z))
            return self._of_outputs((p - heads.to(z.dtype)) * (mass / draws).sqrt())
        if self.function is F.mse_loss:
            scores = torch.randn(shape, dtype=z.dtype, device=z.device, generator=generator)
        else:
            scores = random_signs(shape, z, generator)
        return self._of_outputs(scores * (self._curvature() / draws).sqrt())

    def _of_outputs(self, columns: Tensor) -> tuple[Tensor, ...]:
        """Return the columns in each output from those in the input: the target is subtracted."""
        return tuple(-columns if name == "target" else columns for name in self.names)

    def _curvature(self) -> Tensor:
        z = self.wide["input"]
        if self.function not in CLOSED_FORMS:
            return self._second_derivative(z)
        point, ratio = CLOSED_FORMS[self.function]
        return self._second_derivative(torch.full_like(z, point)) * ratio(z, self.wide["target"])

    def _second_derivative(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.total(input=z), z, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), z)
        return positive_part(self.criterion, curvature) / self.divisor()


def check_curved(function: Function, options: dict[str, object]) -> None:
    """Refuse the losses that are piecewise linear.

    Raises:
        UnsupportedCriterion: naming the loss or its option.
    """
    if function is F.l1_loss or (function is F.smooth_l1_loss and options.get("beta") == 0):
        raise UnsupportedCriterion(
            "beta" if "beta" in options else "",
            "is the L1 loss, whose Hessian is zero; use SmoothL1Loss or HuberLoss, or curvature='empirical'",
        )
