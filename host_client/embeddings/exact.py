"""An embedding's digital equivalent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from host_client.embeddings.base import Embedding, Stage
from host_client.solvers.direct import solve_direct
from spu_link.operators import Dense, Operator
from spu_link.program import Program


def solve_exactly(embedding: Embedding, operator: Operator, drive: Tensor, damping: float) -> Tensor:
    """Return the solution of a device under an embedding without noise, t → ∞: the same plan, each problem solved here.

    Args:
        embedding: how the system is cut.
        operator: F.
        drive: b, shape (N,).
        damping: λ > 0.

    Returns:
        g̃, shape (N,), float64.

    Raises:
        InvalidProgram: for an operator that the embedding has no map for, or without damping.
    """
    program = Program(operator, drive.double(), damping=damping, start="drive")
    step: Stage | Tensor = embedding.embed(operator).plan(program)
    while isinstance(step, Stage):
        step = step.then(_solved(step.problems))
    return step


def _solved(problems: Sequence[Program]) -> list[Tensor]:
    """Exact solutions; problems under one matrix share its factorisation."""
    solutions: list[Tensor] = []
    for (_, damping), group in groupby(problems, key=lambda one: (id(one.operator), one.damping)):
        same = list(group)
        operator = same[0].operator
        if isinstance(operator, Dense):
            matrix = operator.matrix.double().clone()
            matrix.diagonal().add_(damping)
            drives = torch.stack([problem.drive.double() for problem in same], 1)
            solutions += torch.cholesky_solve(drives, torch.linalg.cholesky(matrix)).unbind(1)
        else:
            solutions += [solve_direct(operator, problem.drive, damping)[0] for problem in same]
    return solutions
