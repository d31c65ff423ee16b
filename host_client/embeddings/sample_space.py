"""The system in sample space: as many cells as the factor has rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from host_client.embeddings.base import Embedded, Embedding, Stage, check_damped, no_map
from spu_link.operators import Dense, FactorOperator, Operator
from spu_link.program import Program


class SampleSpace(Embedding):
    """A device of m cells solves (AAᵀ + λI) w = A b for F = AᵀA, and g̃ = (b − Aᵀw) / λ (Woodbury).

    m is the number of rows of A: samples times outputs for the exact curvature, whatever N is. A Gram matrix AAᵀ is
    computed here, in float64, for each new operator. The start x₀ becomes A x₀, so that w(t) = A x(t) at all times, x
    being the cells of a device with one for each parameter.

    Exact as t → ∞. At finite t, g̃ is off by Aᵀ(w∞ − w(t)) / λ: nothing in the null space of A, and μ/λ times as much as
    with a cell for each parameter along an eigenvector of F with eigenvalue μ. Noise κ₀ gives g̃ the covariance
    κ₀ Aᵀ(AAᵀ + λI)⁻¹A / λ².
    """

    name = "sample"
    single = True
    cell = "row"

    def cells(self, operator: Operator) -> int:
        """m, the number of rows of A."""
        return self._factor(operator).shape[0]

    def programs(self, operator: Operator) -> int:
        """One."""
        return 1

    def embed(self, operator: Operator) -> Embedded:
        """Compute the Gram matrix."""
        return _InSampleSpace(self._factor(operator))

    def state_after(self, start: Tensor, value: Tensor, relaxed: float) -> Tensor:
        """An estimate of the state x(t) of a device with a cell for each parameter.

        From dx = −λx + b − Aᵀw follows x(t) = e^{−λt} x₀ + (1 − e^{−λt}) g̃ where w is that of the reading all the time.
        Starting from g̃ itself would make the errors of short runs grow from one to the next, by up to 1 / (e λt).
        """
        return start.lerp(value, -math.expm1(-relaxed))

    def _factor(self, operator: Operator) -> FactorOperator:
        if not isinstance(operator, FactorOperator):
            raise no_map(self.name, operator, "a factor A of F = AᵀA, such as Rows or what the capture gives")
        return operator


class _InSampleSpace(Embedded):
    def __init__(self, operator: FactorOperator) -> None:
        # b − Aᵀw is small against its terms where F is large against λ: float32 products would not do.
        self._a = operator.map(lambda operand: operand.double())
        self._gram = Dense(self._a.gram())

    @property
    def first(self) -> Operator:
        return self._gram

    def plan(self, program: Program) -> Stage:
        check_damped(SampleSpace.name, program.damping)
        b, start = program.drive.double(), program.start

        def then(solutions: Sequence[Tensor]) -> Tensor:
            (w,) = solutions
            return ((b - self._a.adjoint(w.to(b))) / program.damping).to(program.drive.dtype)

        x0 = start if isinstance(start, str) else self._a.apply(start.to(b))
        return Stage([replace(program, operator=self._gram, drive=self._a.apply(b), start=x0)], then)
