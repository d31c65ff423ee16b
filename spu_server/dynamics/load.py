"""From a program to its law of motion."""

from __future__ import annotations

import torch
from torch import Tensor

from spu_link.operators import FactorOperator
from spu_link.program import Program
from spu_server.dynamics.dense import DenseTransition
from spu_server.dynamics.factor import FactorTransition
from spu_server.dynamics.transition import Transition

SMALL_PROBLEM = 10_000_000
"""Most elements m·N of A for which operands are promoted to float64, so that a long solve is exact beyond float32."""


def transition_of(program: Program) -> Transition:
    """The motion under `program`: state, drive and noise in float64, large operands in the dtype they came in.

    Large operands are referred to, not copied; the drive is copied, for a start at the drive outlives the program. A
    factor with m ≥ N is held as F: the smaller matrix, and without damping also the more exact one, since in sample
    space what has decayed comes out as the difference of two terms that grow with time.
    """
    operator = program.operator
    drive = program.drive.to(torch.float64, copy=True)
    m, n = operator.shape
    if not isinstance(operator, FactorOperator) or m >= n:
        return DenseTransition(operator, drive, damping=program.damping, noise=program.noise)
    if m * n <= SMALL_PROBLEM:
        operator = operator.map(Tensor.double)
    return FactorTransition(operator, drive, damping=program.damping, noise=program.noise)
