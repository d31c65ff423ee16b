"""Scalar functions of one eigenvalue that make up the exact law of an Ornstein–Uhlenbeck process over a duration.

For dx = −(f x − b) ds + √(2κ₀) dW over Δ, with independent standard normal z₁ and z₂,

    x'     = decay·x    + response·b            + √κ₀·diffusion·z₁,
    ∫ x ds = response·x + integrated_response·b + √κ₀·(shared·z₁ + own·z₂).

Textbook forms such as var ∫x = (2κ₀/f²)[Δ − 2(1−e^{−y})/f + (1−e^{−2y})/(2f)], y = fΔ, cancel completely as y → 0. With
u = y/2, T = tanh u, τ = T/u and γ = (1 − τ)/u² every one of them is a sum, product or quotient of positive numbers, so
all keep full relative accuracy for every f ≥ 0 and Δ ≥ 0, both limits included:

    φ₁ = (1−e^{−y})/f        = Δ τ / (1 + T)                a² / κ₀ = (1−e^{−2y})/f          = 2 Δ τ / (1 + T)²
    φ₂ = (Δ − φ₁)/f          = Δ² (u γ + τ) / (2 (1 + T))   c² / κ₀ = cov²/a², cov = κ₀ φ₁²  = Δ³ τ³ / (2 (1 + T)²)
                                                            d² / κ₀ = (var ∫x − c²)/κ₀       = Δ³ γ / 2

Eigenvalues are arrays, at least 0, in 1/τ; durations are in τ. Everything is float64. Source of the law: Gillespie,
Phys. Rev. E 54 (1996) 2084.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]
"""A float64 array."""

ScalarFunction: TypeAlias = Callable[[Vector, float], Vector]
"""A function of eigenvalues f (any shape) and a duration Δ."""


def decay(f: Vector, duration: float) -> Vector:
    """Return the factor that remains of the start: e^{−fΔ}."""
    return np.exp(-f * duration)


def response(f: Vector, duration: float) -> Vector:
    """Response to the drive, φ₁ = (1 − e^{−fΔ})/f, and weight of the start in the integral; in τ. Limit Δ."""
    T, tau, _ = _hyperbolic(f, duration)
    return duration * tau / (1.0 + T)


def integrated_response(f: Vector, duration: float) -> Vector:
    """Weight of the drive in the integral, φ₂ = (Δ − φ₁)/f; in τ². Limit Δ²/2."""
    T, tau, gamma = _hyperbolic(f, duration)
    return duration**2 * (0.5 * f * duration * gamma + tau) / (2.0 * (1.0 + T))


def diffusion(f: Vector, duration: float) -> Vector:
    """Standard deviation of the state, a/√κ₀; in √τ. Limit √(2Δ)."""
    T, tau, _ = _hyperbolic(f, duration)
    return np.sqrt(2.0 * duration * tau) / (1.0 + T)


def shared(f: Vector, duration: float) -> Vector:
    """Part of the integral's deviation that goes with the state's, c/√κ₀; in τ^{3/2}. Limit √(Δ³/2)."""
    T, tau, _ = _hyperbolic(f, duration)
    return np.sqrt(0.5 * (duration * tau) ** 3) / (1.0 + T)


def own(f: Vector, duration: float) -> Vector:
    """Part of the integral's deviation that is independent of the state, d/√κ₀; in τ^{3/2}. Limit √(Δ³/6)."""
    _, _, gamma = _hyperbolic(f, duration)
    return np.sqrt(0.5 * duration**3 * gamma)


STATE: tuple[ScalarFunction, ...] = (decay, response, diffusion)
"""Components of the state: functions for the start, the drive and z₁."""

INTEGRAL: tuple[ScalarFunction, ...] = (response, integrated_response, shared, own)
"""Components of the integral: functions for the start, the drive, z₁ and z₂."""


def slope(function: ScalarFunction, damping: float, s: Vector, duration: float) -> Vector:
    """k(s) = (h(λ+s) − h(λ))/s, where h(F + λI) = h(λ)·I + Aᵀ k(AAᵀ) A for F = AᵀA; 0 where s = 0.

    k always acts through Aᵀ q with ‖Aᵀ q‖² = s, so k(s) at s = 0 is without effect, and the plain difference is exact
    enough: its rounding, ε·h(λ)/s, comes out as ε·h(λ), the rounding of the result itself.

    Args:
        function: h.
        damping: λ ≥ 0.
        s: eigenvalues of AAᵀ, shape (k,), those at rounding level set to 0 (see `clean`).
        duration: Δ.
    """
    h = function(damping + np.append(0.0, s), duration)
    k: Vector = np.divide(h[1:] - h[0], s, out=np.zeros_like(s), where=s > 0.0)
    return k


def at(function: ScalarFunction, f: float, duration: float) -> float:
    """A scalar function at one eigenvalue."""
    return float(function(np.asarray(f), duration))


def clean(s: Vector, size: int) -> Vector:
    """Computed eigenvalues of a matrix of `size` rows; what may be rounding of 0 becomes 0."""
    return np.where(np.abs(s) > np.finfo(np.float64).eps * size * s.max(), s, 0.0)


def _hyperbolic(f: Vector, duration: float) -> tuple[Vector, Vector, Vector]:
    """T = tanh u, τ = T/u and γ = (1 − τ)/u² for u = fΔ/2."""
    u = 0.5 * duration * np.asarray(f, dtype=np.float64)
    # Lambert's fraction tanh u = u/(1 + u² r), r = 1/(3 + u²/(5 + u²/(7 + …))), is exact to the last bit below 1.
    small = np.minimum(u, 1.0) ** 2
    r = np.full_like(u, 1.0 / 19.0)
    for odd in range(17, 1, -2):
        r = 1.0 / (odd + small * r)
    tau_small = 1.0 / (1.0 + small * r)
    large = np.maximum(u, 1.0)
    T = np.tanh(u)
    below = u < 1.0
    tau = np.where(below, tau_small, np.tanh(large) / large)
    gamma = np.where(below, r * tau_small, (1.0 - tau) / large / large)
    return T, tau, gamma
