"""The system in the smaller of sample space and parameter space."""

from __future__ import annotations

import torch
from torch import Tensor

from host_client.optimizers.solvers.checks import check_damping
from host_client.optimizers.solvers.qr import solve_qr
from spu_link.operators.base import FactorOperator


def solve_woodbury(operator: FactorOperator, drive: Tensor, damping: float) -> Tensor:
    """Solution x = (AᵀA + λI)⁻¹ b = (b − Aᵀ (AAᵀ + λI)⁻¹ A b) / λ by Cholesky factorisation of the m × m matrix.

    With as many rows as columns or more, the N × N matrix is the smaller one, and `solve_qr` solves with it.
    The relative error is about ε (1 + ‖F‖/λ) for m < N, and about the root of that times ε for m ≥ N.

    Args:
        operator: A, of shape (m, N).
        drive: b, shape (N,).
        damping: λ > 0.

    Returns:
        x, shape (N,), float64.

    Raises:
        ValueError: when λ is not positive.
    """
    check_damping(damping)
    if operator.shape[0] >= operator.parameters:
        return solve_qr(operator, drive, damping)
    # The difference below is small against its terms where F is large against λ: float32 products would not do.
    exact = operator.map(lambda operand: operand.double())
    b = drive.double()
    gram = exact.gram().to(b.device)
    gram.diagonal().add_(damping)
    w = torch.cholesky_solve(exact.apply(b)[:, None], torch.linalg.cholesky(gram))[:, 0]
    return (b - exact.adjoint(w)) / damping
