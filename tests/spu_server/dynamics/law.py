"""The law of a step: read off a transition through its inputs, and by matrix exponentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import expm
from torch import Tensor

from spu_server.dynamics import Motion

Matrix = NDArray[np.float64]


@dataclass
class Law:
    """The pair y = (x', ∫x ds), of 2N components: y = offset + start·x + a normal vector of this covariance."""

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


def law_of(build: Callable[[Tensor], Motion], b: Tensor, duration: float, draws: int = 2) -> Law:
    """The step's law through its response to unit vectors, one input at a time: b, x = e_i, z₁ = e_i, z₂ = e_i, ….

    Args:
        build: makes the motion for a drive.
        b: the drive.
        duration: Δ.
        draws: vectors of noise that a step with its integral draws.
    """
    n = len(b)
    zero, units = torch.zeros(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    driven, free = build(b), build(zero)

    def y(motion: Motion, state: Tensor, *normals: Tensor) -> Matrix:
        source: Iterator[Tensor] = iter(normals)
        step = motion.step(state, duration, lambda: next(source), integral=True)
        assert step.integral is not None
        return torch.cat(step).numpy()

    silent = [zero] * draws
    start = np.stack([y(free, e, *silent) for e in units], axis=1)
    kicks = [[e if j == place else zero for j in range(draws)] for place in range(draws) for e in units]
    noise = np.stack([y(free, zero, *normals) for normals in kicks], axis=1)
    return Law(y(driven, zero, *silent), start, noise @ noise.T)


def law_by_exponentials(f: Matrix, b: Matrix, noise: float, duration: float) -> Law:
    """The same for dx = −(f x − b) ds + √(2κ) dW, after Van Loan (1978), over a short time and then doubled."""
    doublings = max(0, math.ceil(math.log2(np.linalg.norm(f, 2) * duration + 1e-300)))
    law = _short_law(f, b, noise, duration / 2**doublings)
    for _ in range(doublings):
        law = law.then(law)
    return law


def _short_law(f: Matrix, b: Matrix, noise: float, duration: float) -> Law:
    n = len(b)
    drift = np.block([[-f, np.zeros((n, n))], [np.eye(n), np.zeros((n, n))]])
    spread = np.zeros((2 * n, 2 * n))
    spread[:n, :n] = 2.0 * noise * np.eye(n)
    blocks = expm(np.block([[-drift, spread], [np.zeros((2 * n, 2 * n)), drift.T]]) * duration)
    propagator = blocks[2 * n :, 2 * n :].T
    driven = expm(np.block([[drift, np.append(b, np.zeros(n))[:, None]], [np.zeros((1, 2 * n + 1))]]) * duration)
    return Law(driven[:-1, -1], propagator[:, :n], propagator @ blocks[: 2 * n, 2 * n :])
