"""A network of resistors and capacitors that computes by being noisy: Σ = c G⁻¹."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from spu_server.dynamics.functions import Vector


@dataclass(frozen=True)
class ResistorNetwork:
    """Two nodes: R1 and R2 join each to its source, R3 joins the nodes, R4 takes node 2 to ground.

    C dv = −G v dt + noise current, G = [[1/R1 + 1/R3, −1/R3], [−1/R3, 1/R2 + 1/R3 + 1/R4]], C = diag(C1, C2), both
    nodes driven by white noise of one density. In units of τ and of the cells, dx = −F x ds + √(2κ) dW with
    F = τ C⁻¹G, which is symmetric up to the capacitors' tolerance.
    """

    resistors: tuple[float, float, float, float]
    """R1 to R4, Ω."""

    capacitors: tuple[float, float]
    """C1 and C2, F."""

    rms: float
    """Voltage of node 1, V rms: sets the noise."""

    tau: float
    """Unit of time that the problem's F is given in, s."""

    tolerance: float = 0.1
    """Largest accepted difference of a program's F from the network's, relative to its Frobenius norm."""

    @property
    def rates(self) -> Vector:
        """C⁻¹G, 1/s, shape (2, 2)."""
        r1, r2, r3, r4 = self.resistors
        conductance = np.array([[1 / r1 + 1 / r3, -1 / r3], [-1 / r3, 1 / r2 + 1 / r3 + 1 / r4]])
        rates: Vector = conductance / np.array(self.capacitors)[:, None]
        return rates

    @property
    def matrix(self) -> Vector:
        """F, in 1/τ."""
        return self.tau * self.rates

    @property
    def noise(self) -> float:
        """κ₀ in V²: the stationary covariance solves F Σ + Σ Fᵀ = 2κ 1, and Σ₁₁ = rms²."""
        unit = scipy.linalg.solve_continuous_lyapunov(self.matrix, 2.0 * np.eye(2))
        return float(self.rms**2 / unit[0, 0])
