"""Upper bounds on the time of work on an operator: no estimates, but what nothing that still works exceeds."""

from __future__ import annotations

from spu_link.operators import Operator

SLOWEST = 5e9
"""Floating-point operations a second, of which all that is done is counted several times: a busy core reaches more."""

CUDA_SECONDS = 20.0
"""Longest that a graphics processor may take to load what it computes with."""


def most_seconds(operator: Operator, compute: str = "cpu") -> float:
    """Longest that one step, or one preparation, under an operator may take, s.

    Counted are 1,000 s³ for functions of the smaller matrix, of s = min(m, N) rows, also of an unsymmetric one with
    noise and averages; s + 20 products of m × N; 2,000 operations for each element that was uploaded, as convolutions
    need them; and as many for each cell.

    Args:
        operator: F over N cells, of m rows.
        compute: kind of device that it is done on.
    """
    m, n = operator.shape
    small = min(m, n)
    elements = sum(tensor.numel() for _, tensors in operator.wire() for tensor in tensors.values())
    operations = 1_000.0 * small**3 + 2.0 * m * n * (small + 20.0) + 2_000.0 * (elements + n)
    return operations / SLOWEST + (0.0 if compute == "cpu" else CUDA_SECONDS)
