"""The system in parameter space."""

from __future__ import annotations

import torch
from torch import Tensor

from host_client.solvers.checks import check_damping, check_size
from host_client.solvers.protocol import Info
from spu_link.operators import FactorOperator, Operator


def solve_dense(operator: Operator, drive: Tensor, damping: float) -> tuple[Tensor, Info]:
    """Solve (F + λI) x = b by Cholesky factorisation of the matrix in full: O(N²) memory, O(N³) time.

    A `Solver`; x is float64.

    Raises:
        ValueError: when λ is not positive, or when the matrix would be larger than `MAX_BYTES`.
    """
    check_damping(damping)
    check_size(operator.parameters)
    given = operator.map(lambda operand: operand.double()).dense()
    matrix = given.T @ given if isinstance(operator, FactorOperator) else given.clone()
    matrix.diagonal().add_(damping)
    return torch.cholesky_solve(drive.double()[:, None], torch.linalg.cholesky(matrix))[:, 0], {}
