"""The network of op-amp integrators whose voltages follow dx = −((F + λI) x − b) ds + √(2κ₀) dW, as a netlist.

One cell is an inverting integrator: an operational amplifier with the capacitor C from its output xᵢ to its inverting
input, the *summing node*. With an ideal amplifier the node is at 0 V, and all currents into it charge the capacitor:

    C dxᵢ/dt = −Σ currents = −(1/R) (Σⱼ Fᵢⱼ xⱼ + λ xᵢ − bᵢ + vᵢ)

- a resistor R/|Fᵢⱼ| from the output xⱼ, or from that of an inverter, −xⱼ, where Fᵢⱼ < 0;
- a resistor R/λ from the cell's own output;
- a resistor R from a source of −bᵢ, and one from a noise source vᵢ, where there is noise.

With s = t/τ and τ = RC this is the equation above, 1 V for each unit of the problem.

**Noise.** The source draws a new normal value ξ of standard deviation σ every h τ and holds it. Over one interval
∫ v ds = h ξ has the variance h² σ², where √(2κ₀) dW has 2κ₀ h. So σ = √(2κ₀/h). What the steps change: with an
eigenvalue f of F + λI, a state at a multiple of h is xₖ₊₁ = e^{−fh} xₖ − ξₖ (1 − e^{−fh})/f, whose variance is that of
the OU law, κ₀ (1 − e^{−2ft})/f, times tanh(fh/2)/(fh/2) = 1 − (fh)²/12 + …, at every time. The mean is exact.

``trrandom`` draws these values. ``trnoise``, made for the purpose, interpolates between them, which takes fh/2 off the
variance, and draws from a pool that ngspice 39 fills from the process's number, so no seed repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from spu_link.errors import mismatch
from spu_link.values import check_finite, check_semidefinite

RESISTANCE = 1e3
"""R in Ω. Paper: 1 kΩ."""

CAPACITANCE = 1e-9
"""C in F. Paper: 1 nF."""

TAU = RESISTANCE * CAPACITANCE
"""τ = RC in s."""

IDEAL_GAIN = 1e9
"""Gain of an ideal amplifier in the netlist: infinity has no number."""

TRANSCONDUCTANCE = 1e-3
"""Of the first stage of an amplifier with a pole, S. Any value does, since its load is in proportion."""


@dataclass(frozen=True)
class OpAmp:
    """A model of an operational amplifier: A(s) = A₀/(1 + s A₀/(2π GBW)), without limits of voltage and current."""

    gain: float = math.inf
    """Open-loop gain A₀ at low frequency."""

    bandwidth: float = math.inf
    """Gain-bandwidth product GBW, Hz. inf: no pole."""

    def __post_init__(self) -> None:
        for name in ("gain", "bandwidth"):
            if not getattr(self, name) > 0.0:
                raise mismatch(name, getattr(self, name), "a number above 0, or inf")


@dataclass(frozen=True)
class Network:
    """A network of N cells with the values that it is to solve.

    Raises:
        InvalidProgram: naming the field that is not what it must be.
    """

    curvature: NDArray[np.float64]
    """F, shape (N, N), symmetric; F + λI is positive definite."""

    damping: float
    """λ ≥ 0."""

    drive: NDArray[np.float64]
    """b, shape (N,)."""

    start: NDArray[np.float64]
    """x at the time 0, shape (N,), V."""

    noise: float = 0.0
    """κ₀ ≥ 0. 0: without noise sources and their resistors."""

    noise_step: float = 0.05
    """h, the time for which a noise source holds a value, τ."""

    amplifier: OpAmp = field(default_factory=OpAmp)
    """Of cells and inverters."""

    offsets: NDArray[np.float64] | None = None
    """Input offset voltages, V, shape (2, N): of the cells' amplifiers, and of their inverters'. None: 0."""

    def __post_init__(self) -> None:
        n = len(self.drive)
        shapes = {"curvature": (n, n), "drive": (n,), "start": (n,)} | (
            {} if self.offsets is None else {"offsets": (2, n)}
        )
        for name, shape in shapes.items():
            value = getattr(self, name)
            if n == 0 or value.shape != shape:
                raise mismatch(name, f"of shape {value.shape}", f"shape {shape} for a drive of {n} cells, at least 1")
            check_finite(name, torch.from_numpy(value))
        for name, low in (("damping", 0.0), ("noise", 0.0), ("noise_step", math.ulp(0.0))):
            if not low <= getattr(self, name) < math.inf:
                expected = "a finite number above 0" if low else "a finite number, at least 0"
                raise mismatch(name, getattr(self, name), expected)
        check_semidefinite("curvature", torch.from_numpy(self.curvature), 0.0)
        smallest, largest = np.linalg.eigvalsh(self.matrix)[[0, -1]]
        if smallest <= n * np.finfo(np.float64).eps * largest:
            raise mismatch(
                "curvature", f"singular with damping {self.damping:g}", "a positive definite F + λI: raise the damping"
            )

    @property
    def cells(self) -> int:
        """N."""
        return len(self.drive)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """F + λI."""
        return self.curvature + self.damping * np.eye(self.cells)

    @property
    def inverted(self) -> NDArray[np.float64]:
        """Elements of F that need an inverter, as positive numbers; 0 elsewhere. Shape (N, N)."""
        return np.maximum(-self.curvature, 0.0)

    @property
    def conductances(self) -> NDArray[np.float64]:
        """Sum g of the conductances at each summing node, in units of 1/R, shape (N,)."""
        sums: NDArray[np.float64] = np.abs(self.curvature).sum(1) + self.damping + 1.0 + (self.noise > 0.0)
        return sums


@dataclass(frozen=True)
class Transient:
    """What is simulated.

    Raises:
        InvalidProgram: for a time that is not above 0, or fewer than one copy.
    """

    duration: float
    """τ."""

    step: float
    """Longest step of the integration, τ. With noise no step is longer than its."""

    copies: int = 1
    """Networks side by side, each with noise of its own."""

    seed: int = 1
    """Of the noise, at least 1."""

    def __post_init__(self) -> None:
        for name in ("duration", "step"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise mismatch(name, getattr(self, name), "a finite number above 0")
        for name in ("copies", "seed"):
            if getattr(self, name) < 1:
                raise mismatch(name, getattr(self, name), "a whole number, at least 1")


def netlist(network: Network, transient: Transient) -> str:
    """Return the netlist for ngspice; the state of cell i in copy k is the voltage of the node ``xi_k``, from 1."""
    nodes = [[f"x{i}_{k}" for i in _numbers(network.cells)] for k in _numbers(transient.copies)]
    step, end = (f"{TAU * value:.12g}" for value in (transient.step, transient.duration))
    lines = [
        f"* {network.cells} cells: dx = -((F + lambda I) x - b) dt/tau + noise, tau = RC = {TAU:g} s, 1 V a unit",
        *_amplifier(network.amplifier),
        f".subckt network {' '.join(f'x{i}' for i in _numbers(network.cells))}",
        *(line for cell in range(network.cells) for line in _cell(network, cell)),
        *(line for cell in range(network.cells) for line in _inverter(network, cell)),
        ".ends",
        *(f"Xnetwork{k} {' '.join(names)} network" for k, names in enumerate(nodes, 1)),
        f".options seed={transient.seed} reltol=1e-6 vntol=1e-9 abstol=1e-12",
        f".save {' '.join(f'v({name})' for names in nodes for name in names)}",
        f".tran {step} {end} 0 {step} uic",
        ".end",
    ]
    return "\n".join(lines) + "\n"


def _amplifier(amplifier: OpAmp) -> list[str]:
    """Return the subcircuit of an amplifier; ``start`` is the voltage of its output at the time 0."""
    gain = min(amplifier.gain, IDEAL_GAIN)
    head = [".subckt opamp plus minus out params: offset=0 start=0", "Voffset input plus {offset}"]
    if math.isinf(amplifier.bandwidth):
        return [*head, f"Egain out 0 input minus {gain:.12g}", ".ends"]
    return [
        *head,
        f"Gfirst 0 pole input minus {TRANSCONDUCTANCE:.12g}",
        f"Rpole pole 0 {gain / TRANSCONDUCTANCE:.12g}",
        f"Cpole pole 0 {TRANSCONDUCTANCE / (2.0 * math.pi * amplifier.bandwidth):.12g} ic={{start}}",
        "Ebuffer out 0 pole 0 1",
        ".ends",
    ]


def _cell(network: Network, cell: int) -> Iterator[str]:
    i, start = cell + 1, f"{network.start[cell]:.12g}"
    yield f"* cell {i}"
    yield f"Xcell{i} 0 sum{i} x{i} opamp offset={_offset(network, 0, cell)} start={start}"
    yield f"Ccell{i} x{i} sum{i} {CAPACITANCE:.12g} ic={start}"
    for j, element in enumerate(network.curvature[cell], 1):
        if element != 0.0:
            yield f"Rf{i}_{j} {'x' if element > 0.0 else 'minus'}{j} sum{i} {RESISTANCE / abs(element):.12g}"
    if network.damping:
        yield f"Rdamping{i} x{i} sum{i} {RESISTANCE / network.damping:.12g}"
    yield f"Vdrive{i} drive{i} 0 {-network.drive[cell]:.12g}"
    yield f"Rdrive{i} drive{i} sum{i} {RESISTANCE:.12g}"
    if network.noise:
        spread, hold = math.sqrt(2.0 * network.noise / network.noise_step), TAU * network.noise_step
        yield f"Vnoise{i} noise{i} 0 dc 0 trrandom(2 {hold:.12g} 0 {spread:.12g} 0)"
        yield f"Rnoise{i} noise{i} sum{i} {RESISTANCE:.12g}"


def _inverter(network: Network, cell: int) -> Iterator[str]:
    """Yield what makes −x of a cell's output, where a negative element needs it."""
    if not network.inverted[:, cell].any():
        return
    j, start = cell + 1, f"{-network.start[cell]:.12g}"
    yield f"* minus x{j}"
    yield f"Xinverter{j} 0 middle{j} minus{j} opamp offset={_offset(network, 1, cell)} start={start}"
    yield f"Rin{j} x{j} middle{j} {RESISTANCE:.12g}"
    yield f"Rback{j} minus{j} middle{j} {RESISTANCE:.12g}"


def _offset(network: Network, kind: int, cell: int) -> str:
    return "0" if network.offsets is None else f"{network.offsets[kind, cell]:.12g}"


def _numbers(count: int) -> range:
    return range(1, count + 1)
