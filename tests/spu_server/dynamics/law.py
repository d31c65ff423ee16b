"""The law of a step: read off a transition through its inputs, and by matrix exponentials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import expm
from torch import Tensor

from spu_server.dynamics import Transition

Matrix = NDArray[np.float64]


@dataclass
class Law:
    """y = (x', ∫x ds) over one step is y = offset + start·x + a normal vector of this covariance; y has 2N components."""

    offset: Matrix
    start: Matrix
    covariance: Matrix

    def then(self, later: Law) -> Law:
        """The law of both steps together: the states compose, the integrals add up."""
        n = self.start.shape[1]
        onward = np.block([[later.start[:n], np.zeros((n, n))], [later.start[n:], np.eye(n)]])
        return Law(
            later.offset + onward @ self.offset,
            onward @ self.start,
            later.covariance + onward @ self.covariance @ onward.T,
        )


def law_of(transition: Transition, duration: float) -> Law:
    """The step's law through its response to unit vectors: x = e_i, z₁ = e_i, z₂ = e_i."""
    n = len(transition.drive)
    zero, units = torch.zeros(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)

    def y(state: Tensor, *normals: Tensor) -> Matrix:
        source: Iterator[Tensor] = iter(normals)
        step = transition.step(state, duration, lambda: next(source), integral=True)
        assert step.integral is not None
        return torch.cat(step).numpy()

    offset = y(zero, zero, zero)
    start = np.stack([y(e, zero, zero) - offset for e in units], axis=1)
    noise = np.stack(
        [y(zero, e, zero) - offset for e in units] + [y(zero, zero, e) - offset for e in units],
        axis=1,
    )
    return Law(offset, start, noise @ noise.T)


def law_by_exponentials(f: Matrix, b: Matrix, noise: float, duration: float) -> Law:
    """The same for dx = −(f x − b) ds + √(2κ) dW, after Van Loan (1978)."""
    n = len(b)
    drift = np.block([[-f, np.zeros((n, n))], [np.eye(n), np.zeros((n, n))]])
    spread = np.zeros((2 * n, 2 * n))
    spread[:n, :n] = 2.0 * noise * np.eye(n)
    blocks = expm(np.block([[-drift, spread], [np.zeros((2 * n, 2 * n)), drift.T]]) * duration)
    propagator = blocks[2 * n :, 2 * n :].T
    driven = expm(np.block([[drift, np.append(b, np.zeros(n))[:, None]], [np.zeros((1, 2 * n + 1))]]) * duration)
    return Law(driven[:-1, -1], propagator[:, :n], propagator @ blocks[: 2 * n, 2 * n :])
