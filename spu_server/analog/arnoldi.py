"""A function of an unsymmetric matrix times one vector, by the Arnoldi process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GAP = 8
"""Steps between two convergence tests."""

TOLERANCE = 1e-9
"""Largest change of the result between two tests, relative."""


def arnoldi(
    matrix: Tensor,
    start: Tensor,
    function: Callable[[Tensor], Tensor],
    *,
    square: Callable[[Tensor], float],
    max_steps: int,
) -> Tensor | None:
    """k(C) p from the Krylov space of C and p, orthogonalised in full and twice.

    With C V = V H + … the result is V k(H) e₁ ‖p‖. It is taken when the change between two tests, δ, has
    |δᵀ C δ| ≤ tolerance² · ‖x‖²: with A ≈ B that is its size after Bᵀ, where it counts.

    Args:
        matrix: C, shape (m, m), float64.
        start: p, shape (m,).
        function: k(H) for a small matrix H.
        square: ‖x‖² of the output that k(C) p is part of.
        max_steps: max number of steps.

    Returns:
        Shape (m,); None if it has not converged after `max_steps` steps.
    """
    length = float(start.norm())
    if length == 0.0:
        return torch.zeros_like(start)
    max_steps = min(max_steps, len(start))
    basis = torch.zeros(max_steps + 1, len(start), dtype=torch.float64)
    upper = torch.zeros(max_steps + 1, max_steps, dtype=torch.float64)
    basis[0] = start / length
    before: Tensor | None = None
    for step in range(1, max_steps + 1):
        spanned = basis[:step]
        w = matrix @ spanned[-1]
        for _ in range(2):
            overlap = spanned @ w
            w = w - overlap @ spanned
            upper[:step, step - 1] += overlap
        norm = float(w.norm())
        exhausted = step == len(start) or norm <= 1e-15 * float(upper[:step, :step].norm())
        if exhausted or step % GAP == 0:
            small = upper[:step, :step]
            coefficients = length * function(small)[:, 0]
            result = coefficients @ spanned
            if exhausted:
                return result
            if before is not None:
                change = coefficients.clone()
                change[: len(before)] -= before
                if abs(float(change @ (small @ change))) <= TOLERANCE**2 * square(result):
                    return result
            before = coefficients
        upper[step, step - 1] = norm
        basis[step] = w / norm
    return None
