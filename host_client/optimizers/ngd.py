"""Exact natural gradient descent by the curvature matrix in full: the plainest of the baselines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from host_client.optimizers.base import NaturalGradient
from host_client.optimizers.ranges import COMMON, Ranges
from host_client.optimizers.solvers.checks import check_damping, check_size
from host_client.optimizers.solvers.dense import solve_dense
from spu_link.operators import Operator


class NGD(NaturalGradient):
    """Natural gradient descent with g̃ = (F + λI)⁻¹ ∇ℓ from F in full: O(N²) memory and O(N³) time, for small N.

    The arguments are those of `NaturalGradient`, with damping λ > 0: F has fewer rows than parameters and cannot be
    inverted without.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for a hyperparameter out of its range, or when F would take too many bytes.
    """

    ranges: ClassVar[Ranges] = {**COMMON, "damping": lambda _, value: check_damping(value)}

    def _check_size(self, parameters: int) -> None:
        check_size(parameters)

    def _directions(self, operator: Operator | None, drive: Tensor) -> Iterable[Tensor]:
        assert self._operator is not None
        return [solve_dense(self._operator, drive, self.hyperparameters["damping"])]
