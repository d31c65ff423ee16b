"""Laws of linear stochastic systems with any drift matrix, by scaling and doubling.

Everything here is a function of one matrix and a duration, known from a power series over a duration δ = Δ/2ⁿ so short
that the series ends, and then doubled n times: matrix products alone, no eigenvectors, so defective and unstable
matrices are as good as any. With f the drift's eigenvalue (`spu_server.dynamics.functions`),

    decay(2δ) = decay²      response(2δ) = response (1 + decay)      integrated(2δ) = 2 integrated + response²

and covariances add up: S(2δ) = S + T S Tᵀ for y' = T y + noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spu_server.dynamics.functions import Vector, at, decay, diffusion, own, response, shared

SHORT = 0.25
"""Longest ‖drift‖·δ at which the power series begins."""

TERMS = 13
"""Terms of the power series: the next one is below 0.25¹³/13! = 2e-18."""

NODES = 9
"""Nodes of the Gauss–Legendre rule, exact up to degree 17 in s."""


@dataclass(frozen=True)
class Mean:
    """Weights of start and drive, as functions of a matrix.

    Attributes:
        decay: weight of the start in the state.
        response: weight of the drive in the state, and of the start in the integral.
        integrated: weight of the drive in the integral; None if not asked for.
    """

    decay: Tensor
    response: Tensor
    integrated: Tensor | None


def doublings(norm: float, duration: float) -> int:
    """Return how often Δ is halved until ‖drift‖·Δ/2ⁿ is short enough for the series.

    Raises:
        OverflowError: when the product is not finite.
    """
    if not math.isfinite(norm * duration):
        raise OverflowError(f"a drift matrix of norm {norm:g} over {duration:g} τ")
    return max(0, math.ceil(math.log2(norm * duration / SHORT))) if norm * duration > SHORT else 0


def norm_of(matrix: Tensor) -> float:
    """Return a bound on the spectral norm: the smallest of three norms that cost nothing."""
    return min(float(torch.linalg.matrix_norm(matrix, kind)) for kind in ("fro", 1, float("inf")))


def nodes(duration: float) -> tuple[Vector, Vector]:
    """Nodes and weights of the Gauss–Legendre rule on [0, δ]."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    return 0.5 * duration * (x + 1.0), 0.5 * duration * w


class DenseLaw:
    """Law over one duration of dx = −(M x − b) ds + √(2κ) dW for a matrix M of shape (N, N), float64.

    Args:
        matrix: M.
        duration: Δ > 0, in τ.
        noise: whether a covariance is wanted.
        integral: whether ∫ x ds is part of the law.

    Attributes:
        mean: functions of M.
        root: S^{1/2}/√κ of y = x, or of y = (x, ∫x ds), symmetric; None without noise.
    """

    def __init__(self, matrix: Tensor, duration: float, *, noise: bool, integral: bool) -> None:
        n = len(matrix)
        eye = torch.eye(n, dtype=torch.float64)
        halvings = doublings(norm_of(matrix), duration)
        short = duration / 2**halvings
        powers = _powers(matrix, TERMS)

        def series(coefficient: Callable[[int], float]) -> Tensor:
            return _combination(powers, coefficient)

        def kernel(s: float) -> Tensor:
            """Return the effect of a kick at s before the end."""
            left = series(lambda j: (-s) ** j / math.factorial(j))
            if not integral:
                return left
            return torch.cat([left, series(lambda j: (-1.0) ** j * s ** (j + 1) / math.factorial(j + 1))])

        decayed = series(lambda j: (-short) ** j / math.factorial(j))
        responded = series(lambda j: (-1.0) ** j * short ** (j + 1) / math.factorial(j + 1))
        integrated = series(lambda j: (-1.0) ** j * short ** (j + 2) / math.factorial(j + 2)) if integral else None
        covariance = None
        if noise:
            covariance = sum((2.0 * w * (k @ k.T) for s, w in zip(*nodes(short), strict=True) for k in [kernel(s)]))
        for _ in range(halvings):
            if covariance is not None:
                onward = _blocks([[decayed, None], [responded, eye]]) if integral else decayed
                covariance = covariance + onward @ covariance @ onward.T
            if integrated is not None:
                integrated = 2.0 * integrated + responded @ responded
            responded = responded + responded @ decayed
            decayed = decayed @ decayed
        self.mean = Mean(decayed, responded, integrated)
        self.root = None if covariance is None else root_of(covariance)


class FactorLaw:
    """Law over one duration under M = BᵀA + λI, in sample space: x = u + Bᵀ w.

    u is what the cells would do with λ alone, du = −(λu − b) ds + √(2κ) dW, and w of shape (m,) follows it through
    p = A u: dw = −(λ + C) w ds − p ds, C = A Bᵀ. So the means are e^{−MΔ} x = e^{−λΔ} x + Bᵀ D A x with
    D = k(C), k(c) = (h(λ+c) − h(λ))/c (`Mean` holds this k for each function h), and the noise of u, N independent
    pairs known from scalars, leaves of w's only a part of shape (m,) to be drawn besides.

    Args:
        cross: C = A Bᵀ, shape (m, m), float64.
        gram: G = A Aᵀ, shape (m, m); None without noise.
        damping: λ ≥ 0.
        duration: Δ > 0, in τ.
        integral: whether ∫ x ds is part of the law.

    Attributes:
        mean: the slopes k(C) of decay, response and integrated response.
        noise: what noise comes to; None without.
    """

    def __init__(self, cross: Tensor, gram: Tensor | None, *, damping: float, duration: float, integral: bool) -> None:
        eye = torch.eye(len(cross), dtype=torch.float64)
        halvings = doublings(norm_of(cross) + damping, duration)
        short = duration / 2**halvings
        powers = _powers(cross, TERMS)

        def slope(s: float) -> Tensor:
            """k(C) of the decay over s: e^{−λs} Σ_j (−s)^{j+1} C^j/(j+1)!."""
            return _combination(powers, lambda j: math.exp(-damping * s) * (-s) ** (j + 1) / math.factorial(j + 1))

        def average(end: float, weight: Callable[[Vector], Vector] = np.ones_like) -> Tensor:
            """∫₀^end weight(s) k(C)(s) ds."""
            points, weights = nodes(end)
            weights = weights * np.exp(-damping * points) * weight(points)
            return _combination(powers, lambda j: float(weights @ (-points) ** (j + 1)) / math.factorial(j + 1))

        decayed, responded = slope(short), average(short)
        integrated = average(short, lambda s: short - s) if integral else None
        noise = None
        if gram is not None:
            kernel = (lambda s: torch.cat([slope(s), average(s)])) if integral else slope
            noise = FactorNoise(gram, kernel, _Scalars(damping, short, integral))
        for level in range(halvings):
            scalar = _Scalars(damping, short * 2**level, integral)
            whole = scalar.decay * eye + cross @ decayed  # decay of λ + C
            if noise is not None:
                noise.double(scalar, whole, scalar.response * eye + cross @ responded, decayed, responded)
            if integrated is not None:
                integrated = 2.0 * integrated + responded @ (2.0 * scalar.response * eye + cross @ responded)
            responded = responded + responded @ whole + scalar.response * decayed
            decayed = decayed @ (whole + scalar.decay * eye)
        if noise is not None:
            noise.finish(_Scalars(damping, duration, integral))
        self.mean = Mean(decayed, responded, integrated)
        self.noise = noise


class FactorNoise:
    """Noise of y = w, or of y = (w, ∫w ds), given that of u: y = √κ (follows · A z + root · ζ).

    Attributes:
        covariance: of y, divided by κ.
        joint: J with cov(y, (u, ∫u ds)) = κ J (1 ⊗ A).
        follows: what y makes of A z, shape (m, m), or (2m, 2m) of A z₁ and A z₂, once finished.
        root: symmetric root of what remains of the covariance, of the same shape, once finished.
    """

    follows: Tensor
    root: Tensor

    def __init__(self, gram: Tensor, kernel: Callable[[float], Tensor], scalar: _Scalars) -> None:
        self.gram = gram
        size = len(gram) * (2 if scalar.integral else 1)
        self.covariance = torch.zeros(size, size, dtype=torch.float64)
        self.joint = torch.zeros_like(self.covariance)
        for s, weight in zip(*nodes(scalar.duration), strict=True):
            kicked = kernel(s)  # what a kick at s before the end comes to, in y, and in (u, ∫u)
            of_u = replace(scalar, duration=s).onward[:, 0]
            self.covariance += 2.0 * weight * (kicked @ gram @ kicked.T)
            self.joint += 2.0 * weight * torch.cat([kicked * float(value) for value in of_u], 1)

    def double(self, scalar: _Scalars, whole: Tensor, responses: Tensor, decayed: Tensor, responded: Tensor) -> None:
        """Go on for as long again: y → T y + V (p, ∫p), (u, ∫u) → T_u (u, ∫u), each plus new noise.

        Args:
            scalar: what λ alone comes to over the present duration.
            whole, responses: decay and response of λ + C.
            decayed, responded: their slopes.
        """
        onward, pushed = whole, decayed
        if scalar.integral:
            onward = _blocks([[whole, None], [responses, torch.eye(len(whole), dtype=torch.float64)]])
            pushed = _blocks([[decayed, None], [responded, None]])
        own_part = _mix(pushed, scalar.lower @ scalar.lower.T)  # V (L Lᵀ ⊗ 1)
        moved = onward @ self.joint
        mixed = self._times_gram(moved) @ pushed.T
        self.covariance = self.covariance + onward @ self.covariance @ onward.T
        self.covariance += mixed + mixed.T + self._times_gram(own_part) @ pushed.T
        self.joint = self.joint + _mix(moved + own_part, scalar.onward.T)

    def finish(self, scalar: _Scalars) -> None:
        """Split y's noise into what follows u's and what is left."""
        self.follows = _mix(self.joint, np.asarray(np.linalg.inv(scalar.lower).T, dtype=np.float64))
        self.root = root_of(self.covariance - self._times_gram(self.follows) @ self.follows.T)

    def _times_gram(self, matrix: Tensor) -> Tensor:
        """M (1 ⊗ G) for a matrix M."""
        return torch.cat([part @ self.gram for part in matrix.split(len(self.gram), 1)], 1)


@dataclass(frozen=True)
class _Scalars:
    """The effect of λ alone over a duration, for u or for (u, ∫u)."""

    damping: float
    duration: float
    integral: bool

    @property
    def decay(self) -> float:
        return at(decay, self.damping, self.duration)

    @property
    def response(self) -> float:
        return at(response, self.damping, self.duration)

    @property
    def lower(self) -> Vector:
        """L with (u, ∫u) = L (z₁, z₂), in units of √κ."""
        a, c, d = (at(function, self.damping, self.duration) for function in (diffusion, shared, own))
        return np.array([[a, 0.0], [c, d]]) if self.integral else np.array([[a]])

    @property
    def onward(self) -> Vector:
        """T with (u, ∫u) → T (u, ∫u)."""
        return np.array([[self.decay, 0.0], [self.response, 1.0]]) if self.integral else np.array([[self.decay]])


def _blocks(rows: list[list[Tensor | None]]) -> Tensor:
    """A matrix of blocks of one shape; None is zeros."""
    zero = next(torch.zeros_like(block) for row in rows for block in row if block is not None)
    return torch.cat([torch.cat([zero if block is None else block for block in row], 1) for row in rows])


def _mix(matrix: Tensor, small: Vector) -> Tensor:
    """M (small ⊗ 1) for a matrix M: its blocks of columns, combined."""
    blocks = torch.stack(matrix.chunk(len(small), 1))
    return torch.cat(torch.einsum("iab,ij->jab", blocks, torch.from_numpy(small.copy())).unbind(), 1)


def _powers(matrix: Tensor, count: int) -> list[Tensor]:
    """1, M, …, M^(count−1)."""
    powers = [torch.eye(len(matrix), dtype=torch.float64)]
    while len(powers) < count:
        powers.append(powers[-1] @ matrix)
    return powers


def _combination(powers: list[Tensor], coefficient: Callable[[int], float]) -> Tensor:
    total = coefficient(0) * powers[0]
    for j, power in enumerate(powers[1:], 1):
        total.add_(power, alpha=coefficient(j))
    return total


def root_of(covariance: Tensor) -> Tensor:
    """The symmetric root of a covariance; what rounding made negative is 0.

    Raises:
        OverflowError: when the covariance is not finite.
    """
    if not torch.isfinite(covariance).all():
        raise OverflowError("a covariance that has grown beyond all numbers")
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.T))
    root: Tensor = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    return root
