"""Solvers of (AᵀA + λI) x = b, as pure functions of operator, drive and damping."""

from host_client.optimizers.solvers.cg import Solution, conjugate_gradients
from host_client.optimizers.solvers.dense import solve_dense
from host_client.optimizers.solvers.woodbury import solve_woodbury

__all__ = ["Solution", "conjugate_gradients", "solve_dense", "solve_woodbury"]
