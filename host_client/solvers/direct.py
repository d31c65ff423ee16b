"""The exact solution by whichever factorisation is the smaller one."""

from __future__ import annotations

from torch import Tensor

from host_client.solvers.dense import solve_dense
from host_client.solvers.protocol import Info
from host_client.solvers.woodbury import solve_woodbury
from spu_link.operators import FactorOperator, Operator


def solve_direct(operator: Operator, drive: Tensor, damping: float) -> tuple[Tensor, Info]:
    """Solve (F + λI) x = b by `solve_woodbury` for a factor of F, and else by `solve_dense`.

    A `Solver`; x is float64.

    Raises:
        ValueError: when λ is not positive, or when the matrix would be too large.
    """
    solve = solve_woodbury if isinstance(operator, FactorOperator) else solve_dense
    return solve(operator, drive, damping)
