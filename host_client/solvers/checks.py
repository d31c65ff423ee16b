"""Checks of the digital solvers' arguments, before memory is taken or a number is divided by zero."""

from __future__ import annotations

from typing import ClassVar

MAX_BYTES = 1 << 30
"""Largest matrix in parameter space that is formed; its Cholesky factor takes as much again."""


class TooManyParameters(ValueError):
    """A network for which the curvature in full takes too much memory; nothing has been reserved for it."""

    remedy: ClassVar[str] = "use the solver solve_woodbury or ConjugateGradients(), which never form the matrix"


def check_damping(damping: float) -> None:
    """Refuse a system without damping: with fewer rows than parameters, AᵀA alone is singular.

    Raises:
        ValueError: when λ is not positive.
    """
    if not damping > 0.0:
        raise ValueError(f"Invalid damping: {damping}; a digital solve needs more than 0")


def check_size(n: int) -> None:
    """Refuse a matrix of `n` rows and columns in float64 that is larger than `MAX_BYTES`.

    Raises:
        TooManyParameters: saying how large it is, and what to use.
    """
    if 8 * n * n > MAX_BYTES:
        raise TooManyParameters(
            f"the curvature of {n} parameters in full takes {8 * n * n / 2**30:.3g} GiB in float64, and the limit is "
            f"{MAX_BYTES / 2**30:.3g} GiB ({int((MAX_BYTES / 8) ** 0.5)} parameters); "
            "use the solver solve_woodbury"
        )
