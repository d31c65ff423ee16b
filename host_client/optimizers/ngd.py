"""Natural gradient descent with a digital solver."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

from torch import Tensor, nn

from host_client.curvature import Criteria
from host_client.optimizers.base import NaturalGradient
from host_client.optimizers.options import NaturalGradientOptions
from host_client.optimizers.ranges import COMMON, SOLVABLE, Ranges
from host_client.solvers import Info, Solver, solve_dense, solve_direct, solve_woodbury
from host_client.solvers.checks import check_size
from spu_link.operators import Operator


class NGD(NaturalGradient):
    """Natural gradient descent with g̃ = (F + λI)⁻¹ ∇ℓ by a solver that is a function.

    The arguments are those of `NaturalGradient`, and:

    Args:
        solver: a function ``(operator, drive, damping) -> (x, info)``, see `host_client.solvers.Solver`; an attribute
            that may be replaced between steps, and no part of the state dictionary. `solve_direct`, the default, is
            exact: `solve_woodbury` where F has a factor, as all captured curvatures have, and else `solve_dense`.
            `ConjugateGradients` is approximate, at a cost that you choose. The exact ones need damping λ > 0: F has
            fewer rows than parameters and cannot be inverted without.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for a hyperparameter out of its range, or when F in full would take too many bytes for
            `solve_dense`.
        TypeError: for a solver that is no function.

    Attributes:
        last_info: what the solver reported of the last solve; empty before the first one. ``counts["not converged"]``
            is the number of reports with ``"converged": False``.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criteria,
        *,
        solver: Solver = solve_direct,
        **options: Unpack[NaturalGradientOptions],
    ) -> None:
        if not callable(solver) or isinstance(solver, type):
            raise TypeError(
                f"Invalid solver: {solver!r}; it must be a function (operator, drive, damping) -> (x, info), such as "
                "solve_woodbury or ConjugateGradients()"
            )
        self.solver = solver
        self.last_info: Info = {}
        super().__init__(model, criterion, **options)

    @property
    def ranges(self) -> Ranges:
        """The range of each hyperparameter: those of damping are the solver's."""
        if self.solver in (solve_dense, solve_direct, solve_woodbury):
            return {**COMMON, "damping": SOLVABLE}
        return COMMON

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"solver": getattr(self.solver, "__name__", self.solver)}

    def _check_size(self, parameters: int) -> None:
        if self.solver is solve_dense:
            check_size(parameters)

    def _directions(self, operator: Operator | None, drive: Tensor) -> Iterable[Tensor]:
        assert self._operator is not None
        solution = self.solver(self._operator, drive, self.hyperparameters["damping"])
        if not (isinstance(solution, tuple) and len(solution) == 2 and solution[0].shape == drive.shape):
            raise TypeError(f"Invalid solver: {self.solver}; it must return (x, info), x of shape {tuple(drive.shape)}")
        x, info = solution
        self.last_info = info or {}
        if not self.last_info.get("converged", True):
            self.counts["not converged"] += 1
        return [x]
