"""The two routes to functions of one matrix: its eigenvectors, once; or the Lanczos process, once a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from spu_link.cached import cached_property
from spu_server.dynamics.eigen import Eigenbasis
from spu_server.dynamics.functions import Vector
from spu_server.dynamics.lanczos import FunctionOutput, Measure, krylov

SMALL = 256
"""Maximum number of rows that are decomposed at once: below, this costs less than one Lanczos process."""

STEPS_PER_ROW = 0.4
"""Cost of an eigendecomposition of m rows in Lanczos steps, divided by m: measured for m from 500 to 700."""

TOLERANCE = 1e-8
"""Largest relative change of an output at which the Lanczos process stops."""

STIFFEST = 1e6
"""Largest trace(G)·φ₁(λ) for the Lanczos route: its rounding grows with it, and beyond it would not converge anyway."""


class Routes:
    """Functions of G. The route is chosen by counted cost, never by the clock: the same steps give the same bits.

    Args:
        make: makes G, shape (m, m), symmetric positive semi-definite, float64; called once, when G is first needed.
        measure: how the outputs of the Lanczos process are measured; see `krylov`.

    Attributes:
        basis: the eigenvectors of G, once they have been needed.
        steps: Lanczos steps taken so far.
    """

    def __init__(self, make: Callable[[], Tensor], measure: Measure) -> None:
        self._make = make
        self._measure = measure
        self.basis: Eigenbasis | None = None
        self.steps = 0

    @cached_property
    def matrix(self) -> Tensor:
        """G."""
        return self._make()

    def prepare(self) -> None:
        """Make G, and decompose a small one."""
        if len(self.matrix) <= SMALL:
            self.decompose()

    def resume(self, steps: int, decomposed: bool) -> None:
        """Go on as where so many Lanczos steps were taken, and the eigenvectors were there or not."""
        self.steps = steps
        if decomposed:
            self.decompose()

    def adopt(self, other: Routes) -> None:
        """Be as far as a copy of this that has gone ahead."""
        self.steps, self.basis = other.steps, other.basis

    def lanczos_pays(self, response: float) -> bool:
        """Return whether the next step should try the Lanczos process; `response` is φ₁(λ) of its duration, in τ."""
        m = len(self.matrix)
        if self.basis is not None or m <= SMALL or self.steps >= STEPS_PER_ROW * m:
            return False
        return float(self.matrix.trace()) * response <= STIFFEST

    def process(self, start: Vector, targets: Sequence[FunctionOutput]) -> Vector | None:
        """k(G) p for every target, shape (targets, m), or None if the process does not converge.

        Args:
            start: p, shape (m,).
            targets: what is wanted.
        """
        result = krylov(
            self.matrix.numpy(), start, targets, tolerance=TOLERANCE, max_steps=len(start) // 4, measure=self._measure
        )
        self.steps += result.steps
        return result.products

    def decompose(self) -> Eigenbasis:
        """The eigenvectors of G, computed once."""
        if self.basis is None:
            self.basis = Eigenbasis(self.matrix)
        return self.basis

    def times(self, v: Vector) -> Vector:
        """G v."""
        product: Vector = self.matrix.numpy() @ v
        return product
