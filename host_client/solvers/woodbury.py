"""The system in the smaller of sample space and parameter space."""

from __future__ import annotations

import torch
from torch import Tensor

from host_client.solvers.checks import check_damping
from host_client.solvers.protocol import Info
from host_client.solvers.qr import solve_qr
from spu_link.operators import FactorOperator, Operator


def solve_woodbury(operator: Operator, drive: Tensor, damping: float) -> tuple[Tensor, Info]:
    """Solve (AᵀA + λI) x = b by Cholesky factorisation of the m × m matrix in x = (b − Aᵀ (AAᵀ + λI)⁻¹ A b) / λ.

    It takes O(m²N + m³) time. With as many rows as columns or more, the N × N matrix is the smaller one, and `solve_qr`
    solves with it. The relative error is about ε (1 + ‖F‖/λ) for m < N, and about the root of that times ε for m ≥ N.

    A `Solver`; x is float64.

    Raises:
        TypeError: when the operator is no factor.
        ValueError: when λ is not positive.
    """
    if not isinstance(operator, FactorOperator):
        raise TypeError(
            f"the curvature given is {type(operator).__name__}, and the Woodbury identity needs a factor A of it; "
            "give Rows, LayerRows or another factor, or use the solver solve_dense"
        )
    check_damping(damping)
    if operator.shape[0] >= operator.parameters:
        return solve_qr(operator, drive, damping)
    # The difference below is small against its terms where F is large against λ: float32 products would not do.
    exact = operator.map(lambda operand: operand.double())
    b = drive.double()
    gram = exact.gram().to(b.device)
    gram.diagonal().add_(damping)
    w = torch.cholesky_solve(exact.apply(b)[:, None], torch.linalg.cholesky(gram))[:, 0]
    return (b - exact.adjoint(w)) / damping, {}
