"""The signature that all solvers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from spu_link.operators import Operator

Info: TypeAlias = Mapping[str, Any]
"""Report of a solver, which may be empty; `NGD` counts those with ``"converged": False``."""


class Solver(Protocol):
    """A function ``solver(operator, drive, damping) -> (x, info)`` that solves (F + λI) x = b, exactly or nearly.

    Options are bound beforehand, by `functools.partial` or, as in `ConjugateGradients`, by a callable dataclass.
    """

    def __call__(self, operator: Operator, drive: Tensor, damping: float, /) -> tuple[Tensor, Info | None]:
        """Solve one system.

        Args:
            operator: F, or a factor A of F = AᵀA (a `FactorOperator`); N columns, float32 or float64. Not changed.
            drive: b, shape (N,), float32 or float64. Not changed.
            damping: λ ≥ 0.

        Returns:
            x, shape (N,), of any floating dtype and on any device, and the report or None.

        Raises:
            TypeError: for a kind of operator that the solver cannot use.
            ValueError: for a λ that it cannot use, or a system too large for it.
            FloatingPointError, torch.linalg.LinAlgError: for a system that is not finite, or singular.
        """
        ...
