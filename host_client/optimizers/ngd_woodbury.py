"""Exact natural gradient descent in sample space: the baseline for large networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from host_client.optimizers.base import NaturalGradient
from host_client.optimizers.ranges import COMMON, Ranges
from host_client.optimizers.solvers.checks import check_damping
from host_client.optimizers.solvers.woodbury import solve_woodbury
from spu_link.operators import FactorOperator, Operator


class NGDWoodbury(NaturalGradient):
    """Natural gradient descent with g̃ = (F + λI)⁻¹ ∇ℓ by the Woodbury identity: O(m²N + m³) time, m = b (d − 1) rows.

    The arguments are those of `NaturalGradient`, with damping λ > 0.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for a hyperparameter out of its range.
    """

    ranges: ClassVar[Ranges] = {**COMMON, "damping": lambda _, value: check_damping(value)}

    def _directions(self, operator: Operator | None, drive: Tensor) -> Iterable[Tensor]:
        factor = self._operator
        if not isinstance(factor, FactorOperator):
            raise TypeError(
                f"the curvature given is {type(factor).__name__}, and the Woodbury identity needs a factor A of it; "
                "give Rows, LayerRows or another factor, or use NGD"
            )
        return [solve_woodbury(factor, drive, self.hyperparameters["damping"])]
