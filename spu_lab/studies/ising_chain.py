"""The transverse-field Ising chain for NetKet: Hamiltonian, exact ground state, and the exact energy of a state.

H = −h Σ σˣᵢ − Σ σᶻᵢ σᶻᵢ₊₁ on a ring of an even number of spins; critical at h = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import netket as nk
import numpy as np
from jax import Array
from numpy.typing import NDArray


def make_hamiltonian(spins: int, field: float) -> Any:
    """Return the Hamiltonian on NetKet's Hilbert space of so many spins."""
    graph = nk.graph.Chain(spins)
    return nk.operator.Ising(nk.hilbert.Spin(0.5, spins), graph=graph, h=field, J=-1.0)


def find_ground_energy(spins: int, field: float) -> float:
    """Return the exact energy of the ground state, from free fermions.

    With an even number of spins it is that of the fermions with antiperiodic momenta: −Σ_k √(1 + h² − 2h cos k),
    k = (2j + 1)π/n (P. Pfeuty, Annals of Physics 57, 79, 1970).
    """
    momenta = (2.0 * np.arange(spins) + 1.0) * np.pi / spins
    return -float(np.sqrt(1.0 + field**2 - 2.0 * field * np.cos(momenta)).sum())


def find_energy(state: Any, field: float) -> float:
    """Return the exact energy of a real state of NetKet: a sum over all 2ⁿ configurations, in blocks."""
    spins = state.hilbert.size
    return float(_sum_energy(state.model.apply, state.variables, spins, field))


@partial(jax.jit, static_argnames=("apply", "spins"))
def _sum_energy(apply: Callable[..., Array], variables: Any, spins: int, field: float) -> Array:
    right = jnp.asarray(_configurations(spins // 2))

    def block(left: Array) -> tuple[Array, Array]:
        """Return log ψ and Σ σᶻᵢ σᶻᵢ₊₁ of all configurations that begin like this."""
        configurations = jnp.hstack([jnp.broadcast_to(left, (len(right), len(left))), right])
        bonds = (configurations * jnp.roll(configurations, 1, axis=1)).sum(1)
        return apply(variables, configurations).real, bonds

    logarithms, bonds = jax.lax.map(block, jnp.asarray(_configurations(spins - spins // 2)))
    psi = jnp.exp(logarithms - logarithms.max()).ravel()
    pairs = (psi.reshape(-1, 2, 2**place) for place in range(spins))  # that differ in one spin
    flips = sum((2.0 * jnp.vdot(pair[:, 0], pair[:, 1]) for pair in pairs), start=jnp.zeros(()))
    weights = psi**2
    return -(field * flips + jnp.vdot(bonds.ravel(), weights)) / weights.sum()


def _configurations(spins: int) -> NDArray[np.float64]:
    """Return all configurations of so many spins ±1, shape (2ⁿ, n), in the order of their binary numbers."""
    numbers = np.arange(2**spins)[:, None] >> np.arange(spins)[::-1]
    return np.where(numbers & 1, -1.0, 1.0)
