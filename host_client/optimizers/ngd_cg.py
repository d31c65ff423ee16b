"""Natural gradient descent by conjugate gradients: the baseline that needs products with F alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from host_client.curvature import Criteria
from host_client.optimizers.base import NaturalGradient
from host_client.optimizers.options import NaturalGradientOptions
from host_client.optimizers.ranges import COMMON, Ranges, above_zero, at_least_one, one_of
from host_client.optimizers.solvers.cg import conjugate_gradients
from spu_link.operators import Operator


class NGDCG(NaturalGradient):
    """Natural gradient descent with g̃ ≈ (F + λI)⁻¹ ∇ℓ after at most c iterations of conjugate gradients: O(cbN) time.

    The arguments are those of `NaturalGradient`, and:

    Args:
        iterations: most iterations c ≥ 1; the paper has 200 (arXiv 2405.13817).
        tolerance: relative residual ‖(F + λI) g̃ − ∇ℓ‖ / ‖∇ℓ‖ > 0 that is small enough to stop at.
        warm_start: whether it starts from the last step's solution where that is nearer than 0. It pays where c is too
            small to converge; to a tolerance, it takes more iterations when batches change.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for a hyperparameter out of its range.

    Attributes:
        last_solution: how the last solve ended; None before the first one. ``counts["not converged"]`` says how often
            the tolerance was not reached.
    """

    ranges: ClassVar[Ranges] = {
        **COMMON,
        "tolerance": above_zero,
        "iterations": at_least_one,
        "warm_start": one_of(True, False),
    }

    def __init__(
        self,
        model: nn.Module,
        criterion: Criteria,
        *,
        iterations: int = 200,
        tolerance: float = 1e-5,
        warm_start: bool = False,
        **options: Unpack[NaturalGradientOptions],
    ) -> None:
        further = {"iterations": iterations, "tolerance": tolerance, "warm_start": warm_start}
        super().__init__(model, criterion, **options, **further)

    def _directions(self, operator: Operator | None, drive: Tensor) -> Iterable[Tensor]:
        group = self.hyperparameters
        curvature = self._operator
        assert curvature is not None
        found = conjugate_gradients(
            curvature.curvature,
            drive,
            damping=group["damping"],
            tolerance=group["tolerance"],
            most=group["iterations"],
            start=self._start(),
        )
        self.last_solution = found
        if found.residual > group["tolerance"]:
            self.counts["not converged"] += 1
        if group["warm_start"]:
            parameters = [parameter for _, parameter in self._parameters]
            for parameter, part in zip(parameters, found.x.split([p.numel() for p in parameters]), strict=True):
                self.state[parameter]["solution"] = part.view_as(parameter)
        return [found.x]

    def _start(self) -> Tensor | None:
        states = [self.state[parameter] for _, parameter in self._parameters]
        if not (self.hyperparameters["warm_start"] and all("solution" in state for state in states)):
            return None
        return torch.cat([state["solution"].flatten() for state in states])
