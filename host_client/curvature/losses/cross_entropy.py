"""Softmax cross-entropy: the likelihood of a class drawn with probabilities softmax(z)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from host_client.curvature.errors import UnsupportedCriterion
from host_client.curvature.losses.base import Loss, at_least_zero
from host_client.curvature.losses.softmax import softmax_root


class CrossEntropy(Loss):
    """`nn.CrossEntropyLoss`: the logits at one position are an element with Hessian mass (diag p − p pᵀ).

    The loss of an element is −Σ_c t_c log p_c with a target t that class weights w and smoothing ε have been worked
    into, and mass = Σ_c t_c: for a class y it is (1 − ε) w_y + ε Σ_c w_c / d, for probabilities π it is
    Σ_c w_c ((1 − ε) π_c + ε / d), and zero where the class is ``ignore_index``. 'mean' divides by Σ w_y over the
    classes that are not ignored, or by the number of elements when the targets are probabilities.
    """

    criterion = nn.CrossEntropyLoss

    def check(self, criterion: Any) -> None:
        """Besides, refuse negative weights."""
        super().check(criterion)
        at_least_zero("weight", criterion.weight)

    def check_shapes(self, z: Tensor, target: Tensor) -> None:
        """Refuse an input without two classes; whether the target fits it torch has looked itself."""
        if z.dim() < 2 or z.shape[1] < 2:
            raise UnsupportedCriterion(
                "",
                f"was given logits of shape {tuple(z.shape)}; it needs (samples, classes, …) with at least two classes",
            )

    def leaves_out(self, target: Tensor) -> bool:
        """Classes may be ignored, or weigh nothing; probabilities sum to one."""
        return not target.is_floating_point()

    def dimension(self, shape: torch.Size) -> int:
        """The number of classes."""
        return shape[1]

    def elements(self, z: Tensor, samples: int) -> Tensor:
        """Z by element: positions are in dimension 0, sample by sample, and after the classes."""
        return z.movedim(1, -1).reshape(samples, -1, z.shape[1]).contiguous()

    def restore(self, columns: Tensor, shape: torch.Size) -> Tensor:
        """`elements`, undone."""
        rows, d, *positions = shape
        return columns.reshape(len(columns), rows, *positions, d).movedim(-1, 2)

    def weights(self, criterion: Any, z: Tensor, target: Tensor) -> tuple[Tensor | None, Tensor | float]:
        """Mass and divisor as said above."""
        smoothing: float = criterion.label_smoothing
        weight = None if criterion.weight is None else criterion.weight.to(z.dtype)
        if target.is_floating_point():
            smooth = target.to(z.dtype).movedim(1, -1) * (1 - smoothing) + smoothing / z.shape[1]
            return smooth.sum(-1) if weight is None else smooth @ weight, float(z.numel() // z.shape[1])
        kept = target != criterion.ignore_index
        if weight is None:
            mass = kept.to(z.dtype)
            return mass, mass.sum()
        given = weight[target.where(kept, 0)] * kept
        return given * (1 - smoothing) + kept * (smoothing * weight.mean()), given.sum()

    def root(self, z: Tensor, mass: Tensor) -> Tensor:
        """The d − 1 columns of lowest rank."""
        return softmax_root(z, mass)

    def scores(self, z: Tensor, mass: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """P − e_ŷ with the class ŷ drawn, times √mass."""
        p = z.softmax(-1)
        cumulative = p.cumsum(-1)
        # One random number a draw, not one a class: the first class whose cumulative probability exceeds it.
        u = torch.rand(*z.shape[:-1], draws, dtype=z.dtype, device=z.device, generator=generator)
        drawn = torch.searchsorted(cumulative, u.mul_(cumulative[..., -1:]), right=True)
        drawn = drawn.clamp_(max=z.shape[-1] - 1).movedim(-1, 0)[..., None]  # (draws, b, q, 1)
        scale = mass.sqrt()[..., None]
        scores = (p * scale).expand(draws, *p.shape).contiguous()
        return scores.scatter_add_(-1, drawn, (-scale).expand(drawn.shape))

    def rank(self, d: int) -> int:
        """One less than there are classes."""
        return d - 1
