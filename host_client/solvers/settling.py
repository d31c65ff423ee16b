"""How long a device must run: bounds on the error of a reading from a few products with F."""

from __future__ import annotations

import math

import torch
from scipy import linalg, optimize
from torch import Tensor

from spu_link.operators import Operator

LOST = 0.01
"""Fraction of the decrease of the quadratic model that a reading may miss."""

MAX_STEPS = 16
"""Max number of products with F for each of two vectors."""

CLOSE = 1.2
"""The time is returned as soon as it is known to be at most so many times too long."""


def settling_time(
    operator: Operator,
    drive: Tensor,
    damping: float,
    start: Tensor | None = None,
    *,
    lost: float = LOST,
    max_steps: int = MAX_STEPS,
) -> float:
    """Return an analog time after which a reading without noise is accurate enough, in τ.

    With x* = (F + λI)⁻¹ b, the quadratic model q(x) = xᵀ(F + λI)x/2 − bᵀx decreases from 0 to −x*ᵀ(F + λI)x*/2, and a
    reading x(t) = x* + exp(−(F + λI) t) (x₀ − x*) misses the fraction ‖x(t) − x*‖² / ‖x*‖² of that, in the norm of
    F + λI. With the residual r = b − (F + λI) x₀ the numerator is rᵀ exp(−2(F + λI) t) (F + λI)⁻¹ r. Gauss quadrature
    by the Lanczos process bounds it and the denominator bᵀ(F + λI)⁻¹b from below, and Gauss-Radau quadrature with a
    node at λ, below which F + λI has no eigenvalue, from above (Golub and Meurant, Matrices, Moments and Quadrature,
    2010). The result is the time at which the upper bound of the fraction is `lost`: but for rounding it is never too
    short. Steps are taken, a power of two, until it is at most `CLOSE` times too long.

    Args:
        operator: F over N cells.
        drive: b, shape (N,).
        damping: λ > 0.
        start: x₀, shape (N,); None for the drive.
        lost: fraction of the model's decrease that may be missed, above 0.
        max_steps: max number of Lanczos steps for r, and for b; a step costs a product with F.

    Raises:
        ValueError: for an argument out of its range.
        FloatingPointError: when a value of drive, start or a product is not finite.
    """
    if not 0.0 < damping < math.inf:
        raise ValueError(f"Invalid damping: {damping}; a bound on the analog time needs more than 0")
    if not lost > 0.0:
        raise ValueError(f"Invalid lost: {lost}; it must be more than 0")
    if max_steps < 1:
        raise ValueError(f"Invalid max_steps: {max_steps}; it must be at least 1")
    drive = drive.to(torch.float64)
    start = drive if start is None else start.to(drive)
    residual = drive - damping * start - operator.curvature(start)
    of_drive, of_residual = _Lanczos(operator, drive), _Lanczos(operator, residual)
    if of_drive.norm == 0.0 or of_residual.norm == 0.0:
        return 0.0
    steps = min(4, max_steps)
    while True:
        bounds = []
        for radau in (False, True):
            wholes, missed = of_drive.quadrature(steps, radau=not radau), of_residual.quadrature(steps, radau=radau)
            bounds.append(_time(*wholes, *missed, damping, lost))
        if bounds[1] <= CLOSE * bounds[0] or steps == max_steps:
            return bounds[1]
        steps = min(2 * steps, max_steps)


def _time(of_whole: Tensor, whole: Tensor, nodes: Tensor, weights: Tensor, damping: float, lost: float) -> float:
    """Return the time after which Σ w exp(−2(s + λ) t) / (s + λ) is `lost` times the sum Σ v/(s + λ) of the whole."""
    allowed = math.log(lost) + float((whole / (of_whole + damping)).sum().log())
    logarithms, rates = (weights / (nodes + damping)).log(), -2.0 * (nodes + damping)

    def excess(time: float) -> float:
        return float(torch.logsumexp(logarithms + rates * time, 0)) - allowed

    now = excess(0.0)
    return float(optimize.brentq(excess, 0.0, now / (2.0 * damping), rtol=1e-6)) if now > 0.0 else 0.0


class _Lanczos:
    """The Lanczos process of F from a vector v, whose steps are taken when they are needed.

    Attributes:
        norm: ‖v‖.
    """

    def __init__(self, operator: Operator, vector: Tensor) -> None:
        self.norm = _check_finite(float(vector.norm()))
        self._operator = operator
        self._before, self._vector = torch.zeros_like(vector), vector / max(self.norm, 1e-300)
        self._diagonal: list[float] = []
        self._off_diagonal: list[float] = []

    def quadrature(self, steps: int, *, radau: bool) -> tuple[Tensor, Tensor]:
        """Return nodes s and weights w, shape (k,), with Σ w f(s) ≈ vᵀ f(F) v after so many steps, or all there are.

        Args:
            steps: number of nodes.
            radau: whether one more node is at 0.
        """
        while len(self._diagonal) < steps and not self._ended:
            self._step()
        diagonal, off_diagonal = self._diagonal[:steps], self._off_diagonal[:steps]
        if radau and not self._ended:
            smallest = -1e-14 * (max(diagonal) + max(off_diagonal))  # an eigenvalue may be below 0 by rounding
            banded = [[0.0, *off_diagonal[:-1]], [alpha - smallest for alpha in diagonal], [*off_diagonal[:-1], 0.0]]
            right = [0.0] * (len(diagonal) - 1) + [off_diagonal[-1] ** 2]
            diagonal = [*diagonal, smallest + float(linalg.solve_banded((1, 1), banded, right)[-1])]
            off_diagonal = [*off_diagonal, 0.0]
        nodes, vectors = linalg.eigh_tridiagonal(diagonal, off_diagonal[:-1])
        return torch.from_numpy(nodes).clamp_min(0.0), torch.from_numpy(self.norm**2 * vectors[0] ** 2)

    @property
    def _ended(self) -> bool:
        """True if every eigenvalue that v has a part in is a node."""
        return bool(self._off_diagonal) and self._off_diagonal[-1] <= 1e-12 * max(self._diagonal)

    def _step(self) -> None:
        image = self._operator.curvature(self._vector)
        if self._off_diagonal:
            image = image - self._off_diagonal[-1] * self._before
        self._diagonal.append(float(self._vector @ image))
        image = image - self._diagonal[-1] * self._vector
        self._off_diagonal.append(_check_finite(float(image.norm())))
        self._before, self._vector = self._vector, image / max(self._off_diagonal[-1], 1e-300)


def _check_finite(norm: float) -> float:
    if not math.isfinite(norm):
        raise FloatingPointError(
            "the drive, the start or a product with the curvature holds values that are not finite, or far too large"
        )
    return norm
