"""From a program to its law of motion."""

from __future__ import annotations

import torch

from spu_link.operators import FactorOperator
from spu_link.program import Program
from spu_server.dynamics.dense import DenseTransition
from spu_server.dynamics.factor import FactorTransition
from spu_server.dynamics.transition import Motion, Transition

CPU = torch.device("cpu")

SMALL_PROBLEM = 1_000_000
"""Maximum m·N of A for which operands are promoted to float64, so that a long solve is exact beyond float32."""


def transition_of(program: Program, compute: torch.device = CPU) -> Transition:
    """The motion under `program`: state, drive and noise in float64, large operands in the dtype they came in.

    Large operands are referred to, not copied; the drive is copied, for a start at the drive outlives the program. A
    factor with m ≥ N is held as F: the smaller matrix, and without damping also the more exact one, since in sample
    space what has decayed comes out as the difference of two terms that grow with time.

    Args:
        program: what to move under.
        compute: where a factor's products are computed, and where drive, state and noise live then. What has the size
            of the rows alone is left to the CPU, and so is a curvature held in full.
    """
    operator = program.operator
    m, n = operator.shape
    if not isinstance(operator, FactorOperator) or m >= n:
        drive = program.drive.to(torch.float64, copy=True)
        return DenseTransition(operator, drive, damping=program.damping, noise=program.noise)
    drive = program.drive.to(compute, torch.float64, copy=True)
    dtype = torch.float64 if m * n <= SMALL_PROBLEM else None
    operator = operator.map(lambda tensor: tensor.to(device=compute, dtype=dtype))
    return FactorTransition(operator, drive, damping=program.damping, noise=program.noise)


def motion_of(program: Program, compute: torch.device = CPU, former: Motion | None = None) -> Motion:
    """The motion under `program`, as `transition_of`.

    Args:
        program: what to move under.
        compute: where.
        former: the motion under a program with the same operator, whose work serves on; None: there is none.
    """
    if former is None:
        return transition_of(program, compute)
    drive = program.drive.to(former.drive.device, torch.float64, copy=True)
    return former.under(drive, damping=program.damping, noise=program.noise)
