"""The self-scaled Broyden method, a quasi-Newton method with a dense inverse Hessian."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import line_search

Vector: TypeAlias = NDArray[np.float64]

ARMIJO, CURVATURE = 1e-4, 0.9
"""Constants of the strong Wolfe conditions: of the sufficient decrease and of the slope (Nocedal and Wright, ch. 3)."""


class SelfScaledBroyden:
    """Minimise a smooth function by SSBroyden (arXiv 2405.04230, eqs. 13-23; used in arXiv 2501.16371).

    A step is along −H∇f, with a line search by the strong Wolfe conditions. Then `update_inverse` updates H. Where
    the line search fails, H is set to the identity, and the next step is along −∇f.

    Args:
        function: returns f and ∇f, shape (n,), at a point.
        start: where to begin, shape (n,).
        scaled: False gives BFGS, without scaling.

    Attributes:
        x: the current point.
    """

    def __init__(
        self, function: Callable[[Vector], tuple[float, Vector]], start: Vector, *, scaled: bool = True
    ) -> None:
        self.x = start
        self._function, self._scaled = function, scaled
        self._at, self._here = start, function(start)
        self._restart()

    def _restart(self) -> None:
        self._inverse, self._restarted = np.eye(len(self.x)), True

    def step(self) -> float:
        """Take a step, if the line search finds one; return the value before it."""
        value, gradient = self._evaluate(self.x)
        direction = -self._inverse @ gradient
        # As in SciPy's BFGS, the line search begins with a step of some 1 along −∇f, and with −H∇f later.
        previous = value + 0.5 * np.linalg.norm(gradient) if self._restarted else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a line search fails is seen from its result
            length, *_ = line_search(
                self._value,
                self._gradient,
                self.x,
                direction,
                gradient,
                value,
                previous,
                c1=ARMIJO,
                c2=CURVATURE,
                maxiter=20,
            )
        if length is None:
            self._restart()
            return value
        s = length * direction
        self.x = self.x + s
        y = self._evaluate(self.x)[1] - gradient
        if y @ s > 0.0:
            curvature = -length * float(s @ gradient)  # sᵀH⁻¹s, since s = −αH∇f
            self._inverse = update_inverse(self._inverse, s, y, curvature if self._scaled else None)
            self._restarted = False
        return value

    def _value(self, x: Vector) -> float:
        return self._evaluate(x)[0]

    def _gradient(self, x: Vector) -> Vector:
        return self._evaluate(x)[1]

    def _evaluate(self, x: Vector) -> tuple[float, Vector]:
        """Return f and ∇f, without computing them again where they have just been computed."""
        if not np.array_equal(x, self._at):
            self._at, self._here = x.copy(), self._function(x)
        return self._here


def update_inverse(inverse: NDArray[np.float64], s: Vector, y: Vector, curvature: float | None) -> NDArray[np.float64]:
    """Return the next inverse Hessian, which maps y to s.

    H⁺ = (H − Hy yᵀH / yᵀHy + φ (yᵀHy) vvᵀ)/τ + ssᵀ/yᵀs with v = s/yᵀs − Hy/yᵀHy. BFGS has φ = τ = 1. With
    b = sᵀH⁻¹s/yᵀs, h = yᵀHy/yᵀs and a = bh − 1, SSBroyden has φ = (1 − θ)/(1 + aθ), a θ between the limits within which
    H⁺ stays positive, and a τ that keeps the eigenvalues of H⁺ from growing apart.

    Args:
        inverse: H, symmetric and positive, shape (n, n).
        s: step, shape (n,).
        y: change of the gradient, shape (n,), with yᵀs > 0.
        curvature: sᵀH⁻¹s; None for BFGS.
    """
    ys, image = float(y @ s), inverse @ y
    yhy = float(y @ image)
    phi, tau = (1.0, 1.0) if curvature is None else _coefficients(curvature / ys, yhy / ys, len(s))
    v = s / ys - image / yhy
    kept = inverse - np.outer(image, image / yhy) + phi * yhy * np.outer(v, v)
    updated: NDArray[np.float64] = kept / tau + np.outer(s, s / ys)
    return updated


def _coefficients(b: float, h: float, n: int) -> tuple[float, float]:
    """Return φ and τ."""
    a = max(b * h - 1.0, 1e-12)  # at smallest 0 by the inequality of Cauchy and Schwarz; 0 if s and Hy are parallel
    smallest = min(1.0, h * (1.0 - math.sqrt(a / (1.0 + a))))
    theta = max((smallest - 1.0) / a, min(1.0 / smallest, (1.0 - b) / b))
    volume = 1.0 + theta * a
    root = volume ** (-1.0 / (n - 1))
    bound = min(1.0, 1.0 / b)
    tau = bound * min(root, 1.0 / theta) if theta > 0.0 else min(bound * root, volume)
    return (1.0 - theta) / volume, tau
