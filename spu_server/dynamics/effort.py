"""Upper bounds on the time of work on an operator: no estimates, but what nothing that still works exceeds."""

from __future__ import annotations

from spu_link.operators import Operator

SLOWEST = 5e9
"""Floating-point operations a second, of which all that is done is counted several times: a busy core reaches more."""

CUDA_SECONDS = 20.0
"""Max time that a graphics processor may take to load what it computes with, in seconds."""


def max_seconds(operator: Operator, compute: str = "cpu") -> float:
    """Return the max time of one step, or of one preparation, under an operator, in seconds.

    Counted are 1,000 s³ for functions of the smaller matrix, of s = min(m, N) rows, also of an unsymmetric one with
    noise and averages; s + 20 products of m × N; 2,000 operations for each element that was uploaded, as convolutions
    need them; and as many for each cell.

    Args:
        operator: F over N cells, of m rows.
        compute: kind of device that it is done on.
    """
    m, n = operator.shape
    small = min(m, n)
    elements = sum(operand.numel() for operand in operator.operands)
    operations = 1_000.0 * small**3 + 2.0 * m * n * (small + 20.0) + 2_000.0 * (elements + n)
    return operations / SLOWEST + (0.0 if compute == "cpu" else CUDA_SECONDS)
