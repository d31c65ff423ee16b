"""Ising: ground states of spin chains by NetKet, with its linear systems solved by a device or by Cholesky; and Adam.

The transverse-field Ising chain at its critical point, a real restricted Boltzmann machine and NetKet's own Monte-Carlo
driver. Adam has the best learning rate of a grid, chosen on the first seed.
"""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from rich.console import Console

from spu_lab.catalogue import SoftwareMissing
from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.devices import open_device
from spu_lab.studies.jobs import work_off
from spu_lab.studies.verdicts import Verdict, to_json, write_table
from spu_lab.training.report import (
    COLOURS,
    INK,
    MUTED,
    PlainTicks,
    dress,
    median_and_range,
    plain_logarithmic,
    save_whole,
)
from spu_lab.training.results import device_summary

try:
    import netket as nk
    import optax

    from host_client.integrations.netket import spu_solver
    from spu_lab.studies.ising_chain import find_energy, find_ground_energy, make_hamiltonian
except ModuleNotFoundError as missing:
    if missing.name not in ("netket", "optax"):
        raise
    raise SoftwareMissing("the experiment ising needs NetKet; install it: pip install 'tngd-spu[netket]'") from None

FIELD = 1.0
"""h, at the critical point."""

TARGET = 1e-3
"""Relative error of the energy that iterations are counted to."""

SPU, CHOLESKY, ADAM = "SPU", "NetKet's Cholesky", "Adam"
FASTER = 5.0
"""Iterations of Adam for each one of the SPU, as is claimed."""

MARGIN = 1.1
"""Iterations of the SPU for each one of Cholesky, as is claimed, at most."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        chains: numbers of spins.
        seeds: of the network, the samples and the device.
        iterations: of the methods that solve the system.
        adam_iterations: of Adam.
        adam_rates: learning rates tried for Adam.
        adam_every: iterations from one exact energy of Adam to the next; for the other methods it is 1.
        samples: configurations in a step of Monte Carlo.
        lr: learning rate of the methods that solve the system.
        diag_shift: λ of the system.
        analog_time: t, in τ.
    """

    chains: Sequence[int] = (10, 20)
    seeds: Sequence[int] = (0, 1, 2)
    iterations: int = 60
    adam_iterations: int = 600
    adam_rates: Sequence[float] = (0.003, 0.01, 0.03, 0.1)
    adam_every: int = 10
    samples: int = 1008
    lr: float = 0.05
    diag_shift: float = 0.01
    analog_time: float = 500.0


MINIATURE = Plan(chains=(10,), seeds=(0,), iterations=30, adam_iterations=200, adam_rates=(0.03,))
"""What ``--quick`` runs."""


@dataclass(frozen=True)
class Training:
    """One training run.

    Attributes:
        spins, method, lr, seed: what was run.
        errors: relative error of the exact energy by iteration.
        ground: exact energy of the ground state.
        device: description of the device; None without one.
    """

    spins: int
    method: str
    lr: float
    seed: int
    errors: Mapping[int, float]
    ground: float
    device: Mapping[str, Any] | None = None

    def reached(self) -> float:
        """Return the first iteration with an error of at most `TARGET`; infinite where there is none."""
        return next((float(step) for step, error in self.errors.items() if error <= TARGET), math.inf)


def run(out: Path, spu: str | None, console: Console, *, quick: bool = False) -> None:
    """Run all chains, methods and seeds.

    Args:
        out: folder for ``ising.csv``, ``.json``, ``.md`` and ``.png``.
        spu: address of a device, which serves one run at a time; None gives each run a daemon with the emulator, on a
            stepped clock; ``"inproc:"`` puts it into the run's process.
        console: where to show it.
        quick: whether to run the miniature.

    Raises:
        DaemonFailed, SpuError: when the daemon or the device is missing, or fails.
    """
    reproduce(MINIATURE if quick else Plan(), out, spu, console)


def reproduce(plan: Plan, out: Path, spu: str | None, console: Console) -> list[Training]:
    """Run a plan, and write its results; see `run`."""
    trainings = _train_all(plan, spu, out, console)
    _write_csv(out / "ising.csv", trainings)
    shown = _choose(plan, trainings)
    verdicts = [verdict for spins in plan.chains for verdict in judge(plan, spins, shown)]
    title = f"Ising chains at h = {FIELD:g}: iterations to a relative energy error of {TARGET:g}"
    _write_table(out / "ising.md", plan, shown, title, verdicts, console)
    save_whole(_draw(plan, shown), out / "ising.png")
    content = {
        "status": "finished",
        **provenance(),
        "device": next(training.device for training in trainings if training.method == SPU),
        "plan": asdict(plan),
        "field": FIELD,
        "target": TARGET,
        "trainings": [_summary(training) for training in trainings],
        "verdicts": to_json(verdicts),
    }
    write_json(out / "ising.json", content)
    console.print(f"CSV, JSON, table and plot: {out}", highlight=False)
    return trainings


def _train_all(plan: Plan, spu: str | None, out: Path, console: Console) -> list[Training]:
    """Train with all methods; Adam's learning rates on the first seed, and the best of them on the others."""
    at_once = None if spu in (None, "inproc:") else 1

    def train(runs: Iterable[tuple[int, str, float, int]]) -> list[Training]:
        jobs = {
            f"{spins} spins, {method}, η = {lr:g}, seed {seed}": {
                "plan": plan,
                "spins": spins,
                "method": method,
                "lr": lr,
                "seed": seed,
            }
            for spins, method, lr, seed in runs
        }
        return list(work_off(partial(_train, spu), jobs, out, console, kind=Training, at_once=at_once).values())

    first, *others = plan.seeds
    solved = [(n, method, plan.lr, seed) for n in plan.chains for method in (SPU, CHOLESKY) for seed in plan.seeds]
    done = train([*solved, *((n, ADAM, lr, first) for n in plan.chains for lr in plan.adam_rates)])
    best = {n: _best([t for t in done if (t.spins, t.method) == (n, ADAM)]).lr for n in plan.chains}
    return done + train((n, ADAM, best[n], seed) for n in plan.chains for seed in others)


def _best(tried: Sequence[Training]) -> Training:
    """Return the one that reaches the target first, or else comes nearest to it."""
    return min(tried, key=lambda training: (training.reached(), min(training.errors.values())))


def _train(spu: str | None, plan: Plan, spins: int, method: str, lr: float, seed: int) -> Training:
    """Train one network: by Adam, or by stochastic reconfiguration with a device or Cholesky's method."""
    hamiltonian, ground = make_hamiltonian(spins, FIELD), find_ground_energy(spins, FIELD)
    state = nk.vqs.MCState(
        nk.sampler.MetropolisLocal(hamiltonian.hilbert, n_chains=16),
        nk.models.RBM(alpha=1, param_dtype=float),
        n_samples=plan.samples,
        seed=seed,
        sampler_seed=seed,
    )
    optimizer, preconditioner, device = optax.sgd(lr), None, None
    iterations, every = plan.iterations, 1
    errors = {}
    with ExitStack() as stack:
        if method == ADAM:
            optimizer, iterations, every = optax.adam(lr), plan.adam_iterations, plan.adam_every
        else:
            solver = nk.optimizer.solver.cholesky
            if method == SPU:
                opened = stack.enter_context(open_device(spu, seed=seed))
                device = {"address": opened.address, **device_summary(opened.info)}
                session = stack.enter_context(opened.session(ttl=60.0))
                solver = spu_solver(session, analog_time=plan.analog_time)
                stack.enter_context(solver.device_errors())
            jacobian = nk.optimizer.qgt.QGTJacobianDense
            preconditioner = nk.optimizer.SR(qgt=jacobian, solver=solver, diag_shift=plan.diag_shift)
        driver = nk.driver.VMC(hamiltonian, optimizer, variational_state=state, preconditioner=preconditioner)
        for step in range(every, iterations + 1, every):
            driver.run(every, show_progress=False)
            errors[step] = (find_energy(state, FIELD) - ground) / abs(ground)
    return Training(spins, method, lr, seed, errors, ground, device)


def _choose(plan: Plan, trainings: Sequence[Training]) -> dict[tuple[int, str], list[Training]]:
    """Return the trainings by chain and method, in the order of seeds; of Adam those with the best learning rate."""
    chosen = {}
    for spins in plan.chains:
        for method in (SPU, CHOLESKY, ADAM):
            those = [t for t in trainings if (t.spins, t.method) == (spins, method)]
            rate = _best([t for t in those if t.seed == plan.seeds[0]]).lr
            chosen[spins, method] = [t for t in those if t.lr == rate]
    return chosen


def judge(plan: Plan, spins: int, shown: Mapping[tuple[int, str], Sequence[Training]]) -> list[Verdict]:
    """Return the two claims about a chain, what came out, and whether they hold; of medians over the seeds."""
    spu, cholesky, adam = (median(t.reached() for t in shown[spins, method]) for method in (SPU, CHOLESKY, ADAM))
    adam_at_least = min(adam, plan.adam_iterations)
    limits = {SPU: plan.iterations, CHOLESKY: plan.iterations, ADAM: plan.adam_iterations}
    counts = {
        method: f"{count:g}" if count < math.inf else f"more than {limits[method]}"
        for method, count in ((SPU, spu), (CHOLESKY, cholesky), (ADAM, adam))
    }
    as_fast = spu < math.inf and spu <= MARGIN * cholesky
    faster = FASTER * spu <= adam_at_least
    seen = f"{counts[SPU]} iterations (median of {len(plan.seeds)} seeds)"
    return [
        Verdict(
            f"{spins} spins: the SPU reaches {TARGET:g} in no more than {MARGIN:g} × the iterations of {CHOLESKY}",
            f"{seen}, against {counts[CHOLESKY]}.",
            as_fast,
        ),
        Verdict(
            f"{spins} spins: it reaches {TARGET:g} in a fifth of Adam's iterations",
            f"{seen}, against {counts[ADAM]}.",
            faster,
        ),
    ]


def _count(training: Training) -> str:
    reached = training.reached()
    return f"{reached:g}" if reached < math.inf else f"more than {max(training.errors)}"


def _write_csv(path: Path, trainings: Sequence[Training]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("spins", "method", "lr", "seed", "iteration", "energy", "relative_error"))
        for t in trainings:
            for step, error in t.errors.items():
                writer.writerow((t.spins, t.method, t.lr, t.seed, step, t.ground + error * abs(t.ground), error))


def _write_table(
    path: Path,
    plan: Plan,
    shown: Mapping[tuple[int, str], Sequence[Training]],
    title: str,
    verdicts: Sequence[Verdict],
    console: Console,
) -> None:
    rows = []
    for (spins, method), trainings in shown.items():
        ends = [list(training.errors.items())[-1] for training in trainings]
        counts = ", ".join(map(_count, trainings))
        rows.append(
            [
                f"{spins} spins, {method}",
                f"{trainings[0].lr:g}",
                counts,
                f"{median(error for _, error in ends):.1e}",
                f"{ends[0][0]}",
            ]
        )
    columns = ("chain and method", "η", f"iterations to {TARGET:g}, by seed", "error at the end", "iterations")
    write_table(path, columns, rows, verdicts, console, title=title)


def _draw(plan: Plan, shown: Mapping[tuple[int, str], Sequence[Training]]) -> Figure:
    figure = Figure(figsize=(5.5 * len(plan.chains), 5.0), dpi=160, layout="constrained", facecolor="white")
    title = "Ground states of Ising chains: NetKet with its linear system solved by an SPU"
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    for axes, spins in zip(
        figure.subplots(1, len(plan.chains), squeeze=False, sharey=True)[0], plan.chains, strict=True
    ):
        _draw_chain(axes, spins, {method: t for (size, method), t in shown.items() if size == spins})
    caption = (
        f"Median, and min to max, over {len(plan.seeds)} seeds; energies of the trained states are exact sums. h = "
        f"{FIELD:g}, periodic, real RBM (α = 1), {plan.samples} samples a step. Stochastic reconfiguration: η = "
        f"{plan.lr:g}, λ = {plan.diag_shift:g}, t = {plan.analog_time:g} τ. Adam: the best of {len(plan.adam_rates)} η."
    )
    figure.supxlabel(textwrap.fill(caption, width=65 * len(plan.chains)), x=0.012, ha="left", fontsize=8.5, color=MUTED)
    return figure


def _draw_chain(axes: Axes, spins: int, trainings: Mapping[str, Sequence[Training]]) -> None:
    for colour, (method, those) in zip(COLOURS, trainings.items(), strict=False):
        steps = np.array(list(those[0].errors))
        errors = np.array([list(training.errors.values()) for training in those])
        label = f"{method}, η = {those[0].lr:g}"
        style: dict[str, Any] = {"linestyle": (0, (4, 1.6)), "zorder": 5} if method == CHOLESKY else {}
        median_and_range(axes, steps, errors, colour=colour, label=label, **style)
    axes.axhline(TARGET, color=MUTED, linewidth=1.2, linestyle=":", label=f"target, {TARGET:g}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(PlainTicks())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("iteration", color=MUTED)
    dress(axes, f"{spins} spins: relative error of the energy, (E − E₀) / |E₀|")
    plain_logarithmic(axes)
    axes.legend(loc="lower left", frameon=False, labelcolor=INK, fontsize=10)


def _summary(training: Training) -> dict[str, Any]:
    reached = training.reached()
    return {
        "spins": training.spins,
        "method": training.method,
        "lr": training.lr,
        "seed": training.seed,
        "ground_energy": training.ground,
        "iterations_to_target": int(reached) if reached < math.inf else None,
        "error_at_end": list(training.errors.values())[-1],
    }
