"""Measurements on a simulated network: each next to the emulator or to the driver ``analog`` on the same problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from host_client.blocking import connect
from spu_lab.spice.comparison import Comparison, compare
from spu_lab.spice.netlist import Network, OpAmp, Transient
from spu_lab.spice.ngspice import Trajectory, simulate
from spu_lab.spice.prediction import mean, settled
from spu_link.operators import Dense

STEP = 0.005
"""Longest step of the integration without noise, τ: ngspice's trapezoidal rule is then off by less than 1e-6 of x."""

LONG = 0.05
"""The same where only the end matters, τ."""


@dataclass(frozen=True)
class Deviation:
    """What one setting of the amplifiers does to the solution, relative to the norm of the exact one.

    Attributes:
        setting: gain, offset in V, or gain-bandwidth product in Hz.
        circuit: in the simulated circuit.
        expected: by the driver, or in closed form, by name.
    """

    setting: float
    circuit: float
    expected: Mapping[str, float]


@dataclass(frozen=True)
class Noisy:
    """Copies of a network with noise.

    Attributes:
        whole: some copies, at all times at which ngspice computed them.
        snapshots: all copies at single times.
        comparisons: of the mean and the covariance with the law, by time; ``"settled"``: at all late times together.
    """

    whole: Trajectory
    snapshots: Trajectory
    comparisons: Mapping[str, Sequence[Comparison]]


def emulated(network: Network, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the states that the emulator computes without noise, at increasing times in τ, shape (times, N)."""
    start, drive = torch.from_numpy(network.start), torch.from_numpy(network.drive)
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        session.program(Dense(torch.from_numpy(network.curvature)), drive, damping=network.damping, start=start)
        states = []
        for duration in np.diff(times, prepend=0.0):
            session.advance(float(duration))
            states.append(session.read().value.numpy())
    return np.array(states)


def settled_in_driver(network: Network, board: Mapping[str, object]) -> NDArray[np.float64]:
    """Return what the driver ``analog`` settles at with these settings of its board, shape (N,)."""
    options = {name: str(value) for name, value in board.items()}
    with (
        connect("inproc:", driver="analog", clock="stepped", seed=0, driver_option=options) as spu,
        spu.session() as session,
    ):
        operator, drive = Dense(torch.from_numpy(network.curvature)), torch.from_numpy(network.drive)
        reading = session.solve(
            operator, drive, damping=network.damping, start="drive", analog_time=_settling_time(network)
        )
    state: NDArray[np.float64] = reading.value.numpy()
    return state


def simulate_noise(network: Network, duration: float, *, copies: int, seed: int) -> Trajectory:
    """Simulate copies with noise for a duration in τ; return their states at the multiples of the noise step."""
    steps = np.arange(0.0, duration + 0.5 * network.noise_step, network.noise_step)
    return simulate(network, Transient(duration, network.noise_step, copies, seed=seed)).nearest(steps)


def compare_noise(
    network: Network, runs: Sequence[Trajectory], snapshots: NDArray[np.float64], late: NDArray[np.float64]
) -> Noisy:
    """Compare runs of `simulate_noise` that differ in their seed with the law.

    Args:
        network: that was simulated.
        runs: with the same numbers of copies and steps.
        snapshots: increasing times in τ, multiples of the network's noise step.
        late: likewise, evenly spaced.
    """
    early, ended = (_join([run.nearest(times) for run in runs]) for times in (snapshots, late))
    comparisons = {
        f"{time:g} τ": compare(network, Trajectory(early.times[[k]], early.states[[k]]))
        for k, time in enumerate(snapshots)
    }
    first = Trajectory(runs[0].times, runs[0].states[:, :1])
    return Noisy(first, early, {**comparisons, "settled": compare(network, ended)})


def measure_gain(network: Network, gain: float) -> Deviation:
    """Return the stationary error for a gain, and what the driver and the closed form predict.

    The driver does so with the mean sum of conductances, and with its default of 1.
    """
    imperfect = replace(network, amplifier=OpAmp(gain))
    conductance = float(network.conductances.mean())
    expected = {
        "driver": settled_in_driver(network, {"amplifier.gain": gain, "amplifier.conductance": conductance}),
        "driver, conductance 1": settled_in_driver(network, {"amplifier.gain": gain}),
        "closed form": settled(imperfect),
    }
    return _deviation(network, gain, settled_in_circuit(imperfect), expected)


def measure_offset(network: Network, offset: float) -> Deviation:
    """Return the stationary error for offsets of this standard deviation, and what driver and closed form predict.

    The cells' amplifiers have the very offsets that the driver draws for its drives; the inverters have none.
    """
    driver = settled_in_driver(network, {"offsets.input": offset})
    drawn = network.matrix @ driver - network.drive
    imperfect = replace(network, offsets=np.array([drawn, np.zeros_like(drawn)]))
    expected = {"driver": driver, "closed form": settled(imperfect)}
    return _deviation(network, offset, settled_in_circuit(imperfect), expected)


def measure_bandwidth(network: Network, bandwidth: float, duration: float) -> Deviation:
    """Return the largest deviation on the way for a gain-bandwidth product, and its closed form to first order."""
    slow = replace(network, amplifier=OpAmp(bandwidth=bandwidth))
    done = simulate(slow, Transient(duration, STEP))
    exact = mean(network, done.times)
    size = np.linalg.norm(_solution(network))
    circuit, expected = (
        float(np.linalg.norm(states - exact, axis=1).max() / size)
        for states in (done.states[:, 0], mean(slow, done.times))
    )
    return Deviation(bandwidth, circuit, {"closed form": expected})


def settled_in_circuit(network: Network) -> NDArray[np.float64]:
    """Return what the circuit settles at without noise, shape (N,)."""
    states: NDArray[np.float64] = simulate(network, Transient(_settling_time(network), LONG)).states[-1, 0]
    return states


def _deviation(
    network: Network, setting: float, circuit: NDArray[np.float64], expected: Mapping[str, NDArray[np.float64]]
) -> Deviation:
    exact = _solution(network)

    def error(state: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(state - exact) / np.linalg.norm(exact))

    return Deviation(setting, error(circuit), {name: error(state) for name, state in expected.items()})


def _solution(network: Network) -> NDArray[np.float64]:
    solution: NDArray[np.float64] = np.asarray(np.linalg.solve(network.matrix, network.drive), np.float64)
    return solution


def _settling_time(network: Network) -> float:
    """Return a time in τ after which e⁻²⁵ = 1e-11 is left of the start."""
    return 25.0 / float(np.linalg.eigvalsh(network.matrix)[0])


def _join(runs: Sequence[Trajectory]) -> Trajectory:
    """Return the copies of all runs, which are at the same times."""
    return Trajectory(runs[0].times, np.concatenate([run.states for run in runs], axis=1))
