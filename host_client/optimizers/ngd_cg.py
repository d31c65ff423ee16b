"""Natural gradient descent by conjugate gradients: the baseline that needs products with F alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from host_client.curvature import Criteria
from host_client.optimizers.base import NaturalGradient
from host_client.optimizers.options import NaturalGradientOptions
from host_client.optimizers.ranges import COMMON, Ranges, above_zero, at_least_one, one_of
from host_client.optimizers.solvers.cg import conjugate_gradients
from host_client.optimizers.vectors import kept_vector, parts_of
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
            for parameter, part in parts_of(found.x, [p for _, p in self._parameters]).items():
                self.state[parameter]["solution"] = part.clone()  # not a view into the whole
        return [found.x]

    def _kept(self, group: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[str, ...]:
        own = ("solution",) if whole["warm_start"] and not group["adam"] else ()
        return super()._kept(group, whole) + own

    def _start(self) -> Tensor | None:
        if not self.hyperparameters["warm_start"]:
            return None
        last = kept_vector("solution", [p for _, p in self._parameters], self.state)
        return last if last.any() else None
