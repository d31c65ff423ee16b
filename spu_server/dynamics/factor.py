"""Motion under F = AᵀA, in sample space: nothing of size N × N, and A only through its products.

For any scalar function h, h(F + λI) = h(λ)·I + Aᵀ k(AAᵀ) A with k(s) = (h(λ+s) − h(λ))/s. A step costs one product with
A, one with Aᵀ, and functions of the m × m Gram matrix AAᵀ between them, by one of two routes: an eigendecomposition,
done once a program, or the Lanczos process, done once a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from spu_link.operators import FactorOperator
from spu_server.dynamics.eigen import Eigenbasis, Table
from spu_server.dynamics.functions import ScalarFunction, Vector, slope
from spu_server.dynamics.lanczos import Target, krylov
from spu_server.dynamics.transition import Transition

SMALL = 256
"""Most rows for which the eigendecomposition is done at once: below, it costs less than one Lanczos process."""

STEPS_PER_ROW = 0.75
"""What an eigendecomposition of m rows costs, in Lanczos steps, divided by m: so measured for m from 500 to 700."""

TOLERANCE = 1e-8
"""Largest relative change of an output at which the Lanczos process stops."""

STIFFEST = 1e6
"""Most λ-relative stiffness for Lanczos: beyond, the residual form loses digits and the process would not converge."""


class FactorTransition(Transition):
    """Works in sample space.

    The Gram matrix and A b are computed once; the route is chosen by counted cost, never by the clock, so that the same
    steps give the same bits.
    """

    operator: FactorOperator

    _gram: Vector | None = None
    _sampled_drive: Vector
    _basis: Eigenbasis | None = None
    _spent = 0

    def prepare(self) -> None:
        """Compute the Gram matrix and A b, and decompose a small Gram matrix."""
        if self._gram is None:
            self._gram = self.operator.gram().numpy()
            self._sampled_drive = self.operator.apply(self.drive).numpy()
            if len(self._gram) <= SMALL:
                self._basis = Eigenbasis(self._gram)

    def _outputs(self, table: Table, inputs: Sequence[Tensor | None], duration: float) -> Tensor:
        self.prepare()
        outputs = self.operator.adjoint(torch.from_numpy(self._weights(table, inputs, duration)))
        for output, row in zip(outputs, table, strict=True):
            for h, v in zip(row, inputs, strict=False):
                if v is not None:
                    output.add_(v, alpha=_at(h, self.damping, duration))
        return outputs

    def _weights(self, table: Table, inputs: Sequence[Tensor | None], duration: float) -> Vector:
        """Σ_j k_ij(AAᵀ) A v_j, shape (outputs, m)."""
        assert self._gram is not None
        samples = self._samples(inputs)
        if self._basis is None:
            stiffness = float(np.trace(self._gram)) * _at(table[0][1], self.damping, duration)
            if stiffness <= STIFFEST and self._spent < STEPS_PER_ROW * len(self._gram):
                weights = self._by_lanczos(table, inputs, samples, duration)
                if weights is not None:
                    return weights
            self._basis = Eigenbasis(self._gram)
        return self._basis.slopes(table, samples, self.damping, duration)

    def _samples(self, inputs: Sequence[Tensor | None]) -> Vector:
        """A v_j for every input, shape (inputs, m)."""
        samples = np.zeros((len(inputs), len(self._sampled_drive)))
        new = {j: v for j, v in enumerate(inputs) if v is not None and v is not self.drive}
        if new:
            samples[list(new)] = self.operator.apply(torch.stack(list(new.values()))).numpy()
        samples[[j for j, v in enumerate(inputs) if v is self.drive]] = self._sampled_drive
        return samples

    def _by_lanczos(
        self, table: Table, inputs: Sequence[Tensor | None], samples: Vector, duration: float
    ) -> Vector | None:
        """What `_weights` is; None if a process does not converge.

        Start and drive share one process. Since decay = 1 − f·response and response = Δ − f·integrated_response, with
        r = b − (F + λI) x and g the drive's function, each output is h_x(λ) x + g(λ) b + Aᵀ[k_g(AAᵀ) A r − g(λ) A x].
        """
        assert self._gram is not None
        (x, b), noises = samples[:2], samples[2:]
        pulled = self._gram @ x
        residual = b - self.damping * x - pulled
        weights = np.empty((len(table), len(x)))
        targets = []
        for row, weight in zip(table, weights, strict=True):
            h_x, g = (_at(h, self.damping, duration) for h in row[:2])
            weight[:] = -g * x
            image = h_x * x + g * b
            square = _square((h_x, inputs[0]), (g, inputs[1])) - 2.0 * g * (x @ image) + g * g * (x @ pulled)
            targets.append(Target(self._slope(row[1], duration), square, image - g * pulled))
        if not self._add(weights, residual, targets):
            return None
        for j, noise in enumerate(noises, 2):
            rows = [i for i, row in enumerate(table) if j < len(row)]
            targets = []
            for i in rows:
                h = _at(table[i][j], self.damping, duration)
                targets.append(Target(self._slope(table[i][j], duration), _square((h, inputs[j])), h * noise))
            if not self._add(weights[rows[0] :], noise, targets):
                return None
        return weights

    def _slope(self, function: ScalarFunction, duration: float) -> Callable[[Vector], Vector]:
        return lambda s: slope(function, self.damping, s, duration)

    def _add(self, weights: Vector, start: Vector, targets: Sequence[Target]) -> bool:
        """Add the products for `targets` to the rows of `weights`; False if the process does not converge."""
        assert self._gram is not None
        found = krylov(self._gram, start, targets, tolerance=TOLERANCE, most=len(start) // 4)
        self._spent += found.steps
        if found.products is None:
            return False
        weights += found.products
        return True


def _at(function: ScalarFunction, f: float, duration: float) -> float:
    """A scalar function at one eigenvalue."""
    return float(function(np.asarray(f), duration))


def _square(*terms: tuple[float, Tensor | None]) -> float:
    """‖Σ_j h_j v_j‖²."""
    vectors = [(h, v) for h, v in terms if v is not None]
    return sum(h * g * float(u @ v) for h, u in vectors for g, v in vectors)
