"""Functions of a symmetric matrix times one vector, by the Lanczos process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.linalg.lapack import dstevd

from spu_server.dynamics.functions import Vector, clean

GAP = 5
"""Steps between two convergence tests; one test costs about as much as two steps."""


Tridiagonal: TypeAlias = tuple[Vector, Vector]
"""Diagonal and off-diagonal of T = Vᵀ G V."""

Measure: TypeAlias = Callable[[Tridiagonal, Vector], float]
"""‖L V c‖² for a vector c of coefficients; see `FunctionOutput` for L."""


def euclidean(matrix: Tridiagonal, c: Vector) -> float:
    """‖V c‖² = cᵀc, for L = I."""
    return float(c @ c)


def energy(matrix: Tridiagonal, c: Vector) -> float:
    """‖Aᵀ V c‖² = cᵀ T c, for L = Aᵀ with G = AAᵀ."""
    diagonal, off_diagonal = matrix
    return float(diagonal @ (c * c) + 2.0 * (off_diagonal @ (c[1:] * c[:-1])))


@dataclass(frozen=True)
class FunctionOutput:
    """An output u + L k(G) p: what k(G) p is wanted for, and so how exactly. L is I, or Aᵀ where G = AAᵀ.

    Attributes:
        function: k, of an array of eigenvalues of G.
        square: ‖u‖².
        image: Lᵀ u, shape (m,).
    """

    function: Callable[[Vector], Vector]
    square: float
    image: Vector


@dataclass(frozen=True)
class Krylov:
    """Result of the process.

    Attributes:
        products: k(G) p for each target, shape (targets, m); None if it did not converge.
        steps: steps taken.
    """

    products: Vector | None
    steps: int


def krylov(
    matrix: Vector,
    start: Vector,
    targets: Sequence[FunctionOutput],
    *,
    tolerance: float,
    max_steps: int,
    measure: Measure = energy,
) -> Krylov:
    """k(G) p for every target, from one Krylov space of G and p, fully reorthogonalised.

    The process stops when every output moved by less than `tolerance` of its norm between two tests. Both are measured
    where it counts, after L, and without going there: for w = V c with Vᵀ G V = T,
    ‖u + L w‖² = ‖u‖² + 2 (V Lᵀu)·c + ‖L V c‖², and the norm of a change δc is ‖L V δc‖.

    Args:
        matrix: G, shape (m, m), symmetric positive semi-definite.
        start: p, shape (m,).
        targets: the outputs.
        tolerance: largest relative change.
        max_steps: max number of steps.
        measure: `euclidean` or `energy`, as L is.
    """
    m = len(start)
    length = math.sqrt(start @ start)
    if length == 0.0:
        return Krylov(np.zeros((len(targets), m)), 0)
    max_steps = min(max_steps, m)
    basis = np.empty((max_steps, m))
    basis[0] = start / length
    diagonal, off_diagonal = np.empty(max_steps), np.empty(max_steps)
    previous: list[Vector] | None = None
    largest = 0.0
    for step in range(1, max_steps + 1):
        spanned = basis[:step]
        w = matrix @ spanned[-1]
        overlap = spanned @ w
        w -= overlap @ spanned
        again = spanned @ w  # A second pass restores what cancellation in the first one lost: "twice is enough".
        w -= again @ spanned
        diagonal[step - 1] = overlap[-1] + again[-1]
        norm = math.sqrt(w @ w)
        largest = max(largest, abs(overlap[-1]) + norm)
        exhausted = step == m or norm <= np.finfo(np.float64).eps * m * largest
        if exhausted or step == max_steps or step % GAP == 0:
            tridiagonal = diagonal[:step], off_diagonal[: step - 1]
            values, vectors, _ = dstevd(diagonal[:step], off_diagonal[: max(step - 1, 1)])
            ritz = np.maximum(clean(values, m), 0.0)
            coefficients = [vectors @ (length * target.function(ritz) * vectors[0]) for target in targets]
            if exhausted or _has_settled(previous, coefficients, tridiagonal, measure, targets, spanned, tolerance):
                return Krylov(np.stack(coefficients) @ spanned, step)
            previous = coefficients
        if step < max_steps:
            off_diagonal[step - 1] = norm
            basis[step] = w / norm
    return Krylov(None, max_steps)


def _has_settled(
    previous: list[Vector] | None,
    coefficients: list[Vector],
    tridiagonal: Tridiagonal,
    measure: Measure,
    targets: Sequence[FunctionOutput],
    spanned: Vector,
    tolerance: float,
) -> bool:
    if previous is None:
        return False
    for target, before, now in zip(targets, previous, coefficients, strict=True):
        change = now.copy()
        change[: len(before)] -= before
        square = target.square + 2.0 * ((spanned @ target.image) @ now) + measure(tridiagonal, now)
        if not measure(tridiagonal, change) <= tolerance**2 * square:
            return False
    return True
