"""Functions of a symmetric positive semi-definite matrix through its eigenvectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from spu_server.dynamics.functions import ScalarFunction, Vector, clean, slope

Table = Sequence[Sequence[ScalarFunction]]
"""One row an output, one scalar function an input; a row may end early, its last inputs then count for nothing."""


class Eigenbasis:
    """G = Q S Qᵀ, decomposed once.

    Everything of size m² is left to torch, here and in the products: numpy's threads would have to wake in addition to
    torch's, which still spin after A was applied, and on a few cores that costs more than the work.

    Args:
        matrix: G, shape (m, m), symmetric positive semi-definite, float64.

    Attributes:
        values: S, shape (m,), ascending; what may be rounding of 0 is 0. A matrix that came in float32 may have values
            a little below 0.
        vectors: Q, shape (m, m), one eigenvector a column.
    """

    def __init__(self, matrix: Tensor) -> None:
        values, self.vectors = torch.linalg.eigh(matrix)
        self.values = clean(values.numpy(), len(values))

    def functions(self, table: Table, inputs: Tensor, damping: float, duration: float) -> Tensor:
        """Σ_j h_ij(G + λI) v_j for every output i.

        Args:
            table: h, by output and input.
            inputs: v, shape (inputs, m), float64.
            damping: λ.
            duration: Δ, in τ.

        Returns:
            Shape (outputs, m).
        """
        return self._combine(table, inputs, lambda h: h(np.maximum(damping + self.values, 0.0), duration))

    def slopes(self, table: Table, inputs: Tensor, damping: float, duration: float) -> Tensor:
        """Σ_j k_ij(G) v_j for every output i, with k the `slope` of h; otherwise as `functions`."""
        return self._combine(table, inputs, lambda h: slope(h, damping, np.maximum(self.values, 0.0), duration))

    def _combine(self, table: Table, inputs: Tensor, weights: Callable[[ScalarFunction], Vector]) -> Tensor:
        coordinates = inputs @ self.vectors
        outputs = torch.zeros(len(table), len(self.values), dtype=torch.float64)
        for output, row in zip(outputs, table, strict=True):
            for h, coordinate in zip(row, coordinates, strict=False):
                output.addcmul_(torch.from_numpy(weights(h)), coordinate)
        product: Tensor = outputs @ self.vectors.T
        return product
