"""The system in parameter space."""

from __future__ import annotations

import torch
from torch import Tensor

from host_client.optimizers.solvers.checks import check_damping, check_size
from spu_link.operators.base import FactorOperator


def solve_dense(operator: FactorOperator, drive: Tensor, damping: float) -> Tensor:
    """Solution x = (AᵀA + λI)⁻¹ b by Cholesky factorisation of the matrix in full.

    Args:
        operator: A, of shape (m, N).
        drive: b, shape (N,).
        damping: λ > 0.

    Returns:
        x, shape (N,), float64.

    Raises:
        ValueError: when λ is not positive, or when the matrix would be larger than `MOST_BYTES`.
    """
    check_damping(damping)
    check_size(operator.parameters)
    a = operator.map(lambda operand: operand.double()).dense()
    matrix = a.T @ a
    matrix.diagonal().add_(damping)
    return torch.cholesky_solve(drive.double()[:, None], torch.linalg.cholesky(matrix))[:, 0]
