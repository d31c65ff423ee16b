"""Softmax cross-entropy: the likelihood of a class drawn with probabilities softmax(z)."""

from __future__ import annotations

import torch
from torch import Tensor

from host_client.curvature.errors import UnsupportedCriterion
from host_client.curvature.losses.arguments import check_weights
from host_client.curvature.losses.softmax import softmax_root
from host_client.curvature.losses.torch_loss import TorchLoss
from spu_link.cached import cached_property


class CrossEntropy(TorchLoss):
    """`nn.CrossEntropyLoss`: the logits at one position are an element with Hessian mass (diag p − p pᵀ).

    The loss of an element is −Σ_c t_c log p_c with a target t that includes class weights w and smoothing ε, and
    mass = Σ_c t_c: for a class y it is (1 − ε) w_y + ε Σ_c w_c / d, for probabilities π it is
    Σ_c w_c ((1 − ε) π_c + ε / d), and zero where the class is ``ignore_index``. 'mean' divides by Σ w_y over the
    classes that are not ignored, or by the number of elements when the targets are probabilities.
    """

    def _check_shapes(self) -> None:
        super()._check_shapes()
        if self.z.dim() < 1 or self.z.shape[self._class_dim] < 2:
            raise UnsupportedCriterion(
                "",
                f"was given an input of shape {tuple(self.z.shape)}; it needs (classes) or (samples, classes, …) with "
                "at least two classes",
            )
        check_weights(self.arguments)

    @cached_property
    def _class_dim(self) -> int:
        return min(1, self.z.dim() - 1)

    def _dims(self) -> tuple[int, ...]:
        return (self._class_dim,)

    def counts(self) -> Tensor | None:
        """Return which classes are neither ignored nor without weight; None for probabilities, which sum to one."""
        return None if self.arguments["target"].is_floating_point() else self._masses[0] != 0

    @cached_property
    def _masses(self) -> tuple[Tensor, Tensor | float]:
        """Mass of each element before the reduction, and the divisor of 'mean'."""
        target, weight = self.wide["target"], self.wide["weight"]
        smoothing: float = self.wide.get("label_smoothing", 0.0)
        if target.is_floating_point():
            smooth = target.movedim(self._class_dim, -1) * (1 - smoothing) + smoothing / self.z.shape[self._class_dim]
            return smooth.sum(-1) if weight is None else smooth @ weight, float(self.element_shape.numel())
        kept = target != self.wide["ignore_index"]
        if weight is None:
            mass = kept.to(self.wide["input"].dtype)
            return mass, mass.sum()
        weights = weight[target.where(kept, 0)] * kept
        return weights * (1 - smoothing) + kept * (smoothing * weight.mean()), weights.sum()

    def _mean_divisor(self) -> Tensor | float:
        return self._masses[1]

    def _reduced_mass(self) -> Tensor:
        return self._masses[0] / self.divisor()

    def _by_element(self) -> Tensor:
        """Return z with the classes last."""
        z: Tensor = self.wide["input"]
        return z.movedim(self._class_dim, -1).contiguous()

    @property
    def _rank(self) -> int:
        return self.z.shape[self._class_dim] - 1

    def _exact(self) -> tuple[Tensor, ...]:
        return self._of_outputs(softmax_root(self._by_element(), self._reduced_mass()))

    def _monte_carlo(self, draws: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """√mass (p − e_ŷ) with the class ŷ drawn."""
        p = self._by_element().softmax(-1)
        cumulative = p.cumsum(-1)
        # One random number a draw, not one a class: the first class whose cumulative probability exceeds it.
        u = torch.rand(*p.shape[:-1], draws, dtype=p.dtype, device=p.device, generator=generator)
        drawn = torch.searchsorted(cumulative, u.mul_(cumulative[..., -1:]), right=True)
        drawn = drawn.clamp_(max=p.shape[-1] - 1).movedim(-1, 0)[..., None]  # (draws, …, 1)
        scale = (self._reduced_mass() / draws).sqrt()[..., None]
        scores = (p * scale).expand(draws, *p.shape).contiguous()
        return self._of_outputs(scores.scatter_add_(-1, drawn, (-scale).expand(drawn.shape)))

    def _of_outputs(self, columns: Tensor) -> tuple[Tensor, ...]:
        """Return columns with the classes last in the shape of the output."""
        return (columns.movedim(-1, 1 + self._class_dim),) * len(self.names)
