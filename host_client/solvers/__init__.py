"""Solvers of (F + λI) x = b, as functions that `NGD` takes: ``NGD(model, criterion, solver=solve_woodbury, …)``.

All have the signature of `Solver`.
"""

from host_client.solvers.cg import ConjugateGradients
from host_client.solvers.dense import solve_dense
from host_client.solvers.direct import solve_direct
from host_client.solvers.protocol import Info, Solver
from host_client.solvers.settling import settling_time
from host_client.solvers.woodbury import solve_woodbury

__all__ = ["ConjugateGradients", "Info", "Solver", "settling_time", "solve_dense", "solve_direct", "solve_woodbury"]
