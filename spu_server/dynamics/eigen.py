"""Functions of a symmetric positive semi-definite matrix through its eigenvectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from spu_server.dynamics.functions import ScalarFunction, Vector, clean, slope

Table = Sequence[Sequence[ScalarFunction]]
"""One row an output, one scalar function an input; a row may end early, its last inputs then count for nothing."""


class Eigenbasis:
    """G = Q S Qᵀ, decomposed once.

    Args:
        matrix: G, shape (m, m), symmetric positive semi-definite, float64.

    Attributes:
        values: S, shape (m,), ascending; what may be rounding of 0 is 0.
        vectors: Q, shape (m, m), one eigenvector a column.
    """

    def __init__(self, matrix: Vector) -> None:
        values, self.vectors = np.linalg.eigh(matrix)
        self.values = clean(values, len(values))

    def functions(self, table: Table, inputs: Vector, damping: float, duration: float) -> Vector:
        """Σ_j h_ij(G + λI) v_j for every output i.

        Args:
            table: h, by output and input.
            inputs: v, shape (inputs, m).
            damping: λ.
            duration: Δ, in τ.

        Returns:
            Shape (outputs, m).
        """
        return self._combine([[h(damping + self.values, duration) for h in row] for row in table], inputs)

    def slopes(self, table: Table, inputs: Vector, damping: float, duration: float) -> Vector:
        """Σ_j k_ij(G) v_j for every output i, with k the `slope` of h; otherwise as `functions`."""
        return self._combine([[slope(h, damping, self.values, duration) for h in row] for row in table], inputs)

    def _combine(self, weights: Sequence[Sequence[Vector]], inputs: Vector) -> Vector:
        # The products are torch's: numpy's threads would have to wake beside torch's, which still spin, and on a few
        # cores that costs more than the products.
        vectors = torch.from_numpy(self.vectors)
        coordinates = (torch.from_numpy(inputs) @ vectors).numpy()
        outputs = np.zeros((len(weights), len(self.values)))
        for output, row in zip(outputs, weights, strict=True):
            for weight, coordinate in zip(row, coordinates, strict=False):
                output += weight * coordinate
        product: Vector = (torch.from_numpy(outputs) @ vectors.T).numpy()
        return product
