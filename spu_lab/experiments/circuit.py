"""Circuit: three cells as op-amp integrators in ngspice, as in the paper's Fig. 6, against the law and the driver.

Needs the program ngspice. The netlist is among the results: ``ngspice -b -r circuit.raw circuit.cir`` runs it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json, write_whole
from spu_lab.spice.comparison import covariance
from spu_lab.spice.figure import circuit_figure
from spu_lab.spice.measurements import (
    STEP,
    Deviation,
    Noisy,
    compare_noise,
    emulated,
    measure_bandwidth,
    measure_gain,
    measure_offset,
    simulate_noise,
)
from spu_lab.spice.netlist import CAPACITANCE, RESISTANCE, Network, Transient, netlist
from spu_lab.spice.ngspice import Trajectory, simulate, version
from spu_lab.spice.prediction import mean
from spu_lab.studies.jobs import work_off
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.studies.verdicts import Verdict, to_json, write_table
from spu_lab.training.report import save_whole

NETWORK: Final = Network(
    curvature=np.array([[1.0, -0.4, 0.3], [-0.4, 0.8, 0.2], [0.3, 0.2, 0.6]]),
    damping=0.2,
    drive=np.array([1.0, -0.5, 0.8]),
    start=np.array([1.0, -0.5, 0.8]),
)
"""Without noise; starts from the drive."""

NOISE, NOISE_STEP = 0.01, 0.05
"""κ₀ in V², and h in τ: steps take 0.05 % at most off a variance."""

NOISY: Final = replace(NETWORK, noise=NOISE, noise_step=NOISE_STEP)
"""The same with noise."""

DURATION = 10.0
"""Of transients without noise, τ."""

SNAPSHOTS = np.array([0.25, 0.5, 1.0, 1.5, 2.5, 4.0, 6.0, 8.0])
SETTLED = np.arange(8.0, 16.01, 0.5)
"""Times at which noisy copies are compared with the law, τ. At 8 τ, e⁻⁶ is left of what was."""


@dataclass(frozen=True)
class Plan:
    """How much is simulated.

    Attributes:
        copies: of the noisy network in each run of ngspice.
        seeds: of these runs.
        gains: A₀ of the amplifiers.
        offsets: standard deviations, V.
        bandwidths: gain-bandwidth products, Hz, increasing.
    """

    copies: int = 32
    seeds: Sequence[int] = tuple(range(1, 9))
    gains: Sequence[float] = (1e1, 1e2, 1e3, 1e4, 1e5)
    offsets: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2)
    bandwidths: Sequence[float] = (1e6, 3e6, 1e7, 3e7, 1e8, 3e8)


MINIATURE = Plan(seeds=(1, 2), gains=(1e2, 1e4), offsets=(1e-3,), bandwidths=(3e6, 3e7, 3e8))
"""What ``--quick`` runs."""

TOLERANCE = 1e-5
"""Largest deviation of the circuit without noise from the emulator, V."""

FALSE_ALARM = 1e-3
"""Chance that a network that follows the law fails the comparison, all numbers together (Bonferroni)."""

PREDICTED = ("driver", "driver, conductance 1", "closed form")
"""Predictions, as they are named in tables."""

ALIKE = 0.2
"""Two errors that differ by less, relative to the second, are said to agree."""


@dataclass(frozen=True)
class Measured:
    """All that was measured."""

    quiet: Trajectory
    emulator: NDArray[np.float64]
    noisy: Noisy
    gains: Sequence[Deviation]
    offsets: Sequence[Deviation]
    bandwidths: Sequence[Deviation]


def run(out: Path, spu: str | None, console: Console, *, quick: bool = False) -> None:
    """Simulate the network with ideal and imperfect amplifiers, and compare.

    Args:
        out: folder for ``circuit.csv``, ``.md``, ``.json``, ``.png`` and ``.cir``.
        spu: not taken: emulator and driver run in this process, on a stepped clock.
        console: where to show it.
        quick: whether to run the miniature.

    Raises:
        DeviceNotTaken: when a device is given.
        SoftwareMissing: when ngspice is not installed.
        SimulationFailed: when ngspice fails.
    """
    if spu is not None:
        raise DeviceNotTaken("circuit makes devices of its own, in this process; leave out --spu")
    reproduce(MINIATURE if quick else Plan(), out, console)


def reproduce(plan: Plan, out: Path, console: Console) -> None:
    """Simulate what a plan says, and write the results; see `run`."""
    used = version()
    text = netlist(NOISY, Transient(float(SETTLED[-1]), NOISE_STEP, seed=plan.seeds[0]))
    write_whole(out / "circuit.cir", text.encode())
    measured = measure(plan, out, console)
    verdicts = judge(measured)
    _write_csv(out / "circuit.csv", measured)
    title = f"Relative error in ngspice {used}: stationary, and for GBW the largest on the way"
    columns = ("amplifiers", "circuit", *PREDICTED)
    write_table(out / "circuit.md", columns, list(_rows(measured)), verdicts, console, title=title)
    panels = measured.quiet, measured.noisy, measured.gains, measured.bandwidths
    save_whole(circuit_figure(NOISY, *panels, caption=_caption()), out / "circuit.png")
    content = {"status": "finished", **provenance(), "ngspice": used, "settings": _settings(plan), **_content(measured)}
    write_json(out / "circuit.json", {**content, "verdicts": to_json(verdicts)})
    console.print(f"CSV, JSON, table, plot and netlist: {out}", highlight=False)


def measure(plan: Plan, out: Path, console: Console) -> Measured:
    """Simulate all parts: runs with noise by seed, and settings of the amplifiers one by one."""
    quiet = simulate(NETWORK, Transient(DURATION, STEP)).nearest(np.linspace(0.0, DURATION, 201))
    noisy = {f"noise, seed {seed}": {"copies": plan.copies, "seed": seed} for seed in plan.seeds}
    runs = work_off(_simulate_noise, noisy, out, console, kind=Trajectory)
    settings = {"gain": plan.gains, "offset": plan.offsets, "bandwidth": plan.bandwidths}
    jobs = {f"{part} {x:g}": {"part": part, "setting": x} for part, values in settings.items() for x in values}
    deviations = work_off(_deviate, jobs, out, console, kind=Deviation)
    return Measured(
        quiet,
        emulated(NETWORK, quiet.times),
        compare_noise(NOISY, list(runs.values()), SNAPSHOTS, SETTLED),
        *([deviations[f"{part} {x:g}"] for x in values] for part, values in settings.items()),
    )


def _simulate_noise(copies: int, seed: int) -> Trajectory:
    return simulate_noise(NOISY, float(SETTLED[-1]), copies=copies, seed=seed)


def _deviate(part: str, setting: float) -> Deviation:
    """Measure one setting of the amplifiers."""
    if part == "bandwidth":
        return measure_bandwidth(NETWORK, setting, DURATION)
    return (measure_gain if part == "gain" else measure_offset)(NETWORK, setting)


def judge(measured: Measured) -> list[Verdict]:
    """Return the verdict on each claim."""
    return [*_judge_law(measured), *_judge_driver(measured), _judge_bandwidth(measured.bandwidths)]


def _judge_law(measured: Measured) -> Iterator[Verdict]:
    error = float(np.abs(measured.quiet.states[:, 0] - measured.emulator).max())
    yield Verdict(
        f"Without noise the circuit follows the emulator within {TOLERANCE:g} V",
        f"The largest deviation over {DURATION:g} τ and all cells is {error:.1e} V.",
        error < TOLERANCE,
    ).of_paper("Fig. 6")
    tests = [test for tests in measured.noisy.comparisons.values() for test in tests]
    smallest = min(test.p for test in tests)
    yield Verdict(
        f"With noise, means and covariances at {len(SNAPSHOTS)} times and settled are those of the OU law",
        f"The smallest p of {len(tests)} comparisons is {smallest:.2g}, and {FALSE_ALARM / len(tests):.2g} would be a "
        f"difference (false-alarm rate {FALSE_ALARM:g} for all together).",
        smallest >= FALSE_ALARM / len(tests),
    ).of_paper("Fig. 6")


def _judge_driver(measured: Measured) -> Iterator[Verdict]:
    for name, words in (
        ("driver", "The driver with amplifier.conductance at the mean sum of conductances"),
        ("driver, conductance 1", "The driver with its default amplifier.conductance of 1"),
        ("closed form", "The closed form"),
    ):
        yield _judge_ratios(f"{words} predicts the error of finite gain", measured.gains, name)
    for name, words in (
        ("driver", "The input offset of an op-amp"),
        ("closed form", "That offset times the sum of conductances"),
    ):
        yield _judge_ratios(f"{words} acts as the driver's offsets.input", measured.offsets, name)


def _judge_ratios(claim: str, deviations: Sequence[Deviation], name: str) -> Verdict:
    ratios = [deviation.circuit / deviation.expected[name] for deviation in deviations]
    worst = max(ratios, key=lambda ratio: abs(ratio - 1.0))
    low, high = (f"{ratio:.3f}" for ratio in (min(ratios), max(ratios)))
    outcome = f"The circuit has {low if low == high else f'{low} to {high}'} times the predicted error."
    return Verdict(f"{claim} within {ALIKE:.0%}", outcome, abs(worst - 1.0) < ALIKE)


def _judge_bandwidth(bandwidths: Sequence[Deviation]) -> Verdict:
    x, y = (np.log([getattr(bandwidth, name) for bandwidth in bandwidths]) for name in ("setting", "circuit"))
    slope = float((y[-1] - y[-3]) / (x[-1] - x[-3]))
    enough = math.exp(float(np.interp(math.log(100.0), -y, x)))
    return Verdict(
        "A finite GBW, which the driver leaves out, makes an error on the way that falls as 1/GBW",
        f"The exponent is {slope:.3f} above {bandwidths[-3].setting / 1e6:g} MHz; an error of 1 % takes "
        f"{enough / 1e6:.2g} MHz at τ = 1 µs.",
        abs(slope + 1.0) < 0.05,
    )


def _caption() -> str:
    rates = ", ".join(f"{rate:.2f}" for rate in np.linalg.eigvalsh(NETWORK.matrix))
    return (
        f"F + λI with eigenvalues {rates}; R = 1 kΩ, C = 1 nF, τ = 1 µs, κ₀ = {NOISE:g} V², 1 V a unit. Errors are "
        "relative to the norm of the solution. Driver: `analog` with amplifier.conductance, the sum of the "
        f"conductances at a summing node, of {NETWORK.conductances.mean():.2g}, the mean, and of 1, its default."
    )


def _rows(measured: Measured) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table: what was varied, the error in the circuit, and the predictions."""
    for label, unit, deviations in (
        ("A₀ = {:g}", 1.0, measured.gains),
        ("offset {:g} V", 1.0, measured.offsets),
        ("GBW {:g} MHz", 1e-6, measured.bandwidths),
    ):
        for deviation in deviations:
            values = (deviation.expected.get(name, math.nan) for name in PREDICTED)
            row = [f"{value:.3g}" if math.isfinite(value) else "–" for value in (deviation.circuit, *values)]
            yield label.format(unit * deviation.setting), *row


def _write_csv(path: Path, measured: Measured) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("part", "setting", "unit", "quantity", "circuit", "expected", "by"))
        for time, states, expected in zip(
            measured.quiet.times, measured.quiet.states[:, 0], measured.emulator, strict=True
        ):
            for cell, pair in enumerate(zip(states, expected, strict=True), 1):
                writer.writerow(("transient", time, "tau", f"x{cell}", *pair, "emulator"))
        writer.writerows(_noisy_rows(measured.noisy.snapshots))
        parts = (
            ("gain", "1", "stationary error", measured.gains),
            ("offset", "V", "stationary error", measured.offsets),
            ("bandwidth", "Hz", "largest error", measured.bandwidths),
        )
        for part, unit, quantity, deviations in parts:
            for deviation in deviations:
                for name, value in deviation.expected.items():
                    writer.writerow((part, deviation.setting, unit, quantity, deviation.circuit, value, name))


def _noisy_rows(snapshots: Trajectory) -> Iterator[tuple[object, ...]]:
    """Yield means and covariances over the copies at each time, next to those of the law."""
    expected = mean(NOISY, snapshots.times)
    for time, states, centre in zip(snapshots.times, snapshots.states, expected, strict=True):
        exact = covariance(NOISY, time)
        found = (states - centre).T @ (states - centre) / len(states)
        for i in range(NOISY.cells):
            yield "noise", time, "tau", f"mean x{i + 1}", states[:, i].mean(), centre[i], "law"
            for j in range(i, NOISY.cells):
                yield "noise", time, "tau", f"covariance x{i + 1} x{j + 1}", found[i, j], exact[i, j], "law"


def _settings(plan: Plan) -> dict[str, Any]:
    return {
        "curvature": NETWORK.curvature.tolist(),
        "damping": NETWORK.damping,
        "drive": NETWORK.drive.tolist(),
        "start": NETWORK.start.tolist(),
        "resistance_ohm": RESISTANCE,
        "capacitance_farad": CAPACITANCE,
        "noise": NOISE,
        "noise_step_tau": NOISE_STEP,
        "step_tau": STEP,
        "duration_tau": DURATION,
        "snapshots_tau": SNAPSHOTS.tolist(),
        "settled_tau": SETTLED.tolist(),
        "copies": plan.copies,
        "seeds": list(plan.seeds),
        "false_alarm": FALSE_ALARM,
        "conductances": NETWORK.conductances.tolist(),
    }


def _content(measured: Measured) -> Mapping[str, Any]:
    return {
        "comparisons": {time: [asdict(test) for test in tests] for time, tests in measured.noisy.comparisons.items()},
        "gains": [asdict(gain) for gain in measured.gains],
        "offsets": [asdict(offset) for offset in measured.offsets],
        "bandwidths": [asdict(bandwidth) for bandwidth in measured.bandwidths],
    }
