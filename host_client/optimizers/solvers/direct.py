"""The exact solution by whichever factorisation is the smaller one."""

from __future__ import annotations

from torch import Tensor

from host_client.optimizers.solvers.dense import solve_dense
from host_client.optimizers.solvers.woodbury import solve_woodbury
from spu_link.operators import FactorOperator, Operator


def solve_direct(operator: Operator, drive: Tensor, damping: float) -> Tensor:
    """Solution x = (F + λI)⁻¹ b: of a factor by `solve_woodbury`, in sample space only where m < N; else of F in full.

    Args:
        operator: F, or a factor A of F = AᵀA; N columns.
        drive: b, shape (N,).
        damping: λ > 0.

    Returns:
        x, shape (N,), float64.

    Raises:
        ValueError: when λ is not positive, or when the matrix would be too large.
    """
    if isinstance(operator, FactorOperator):
        return solve_woodbury(operator, drive, damping)
    return solve_dense(operator, drive, damping)
