"""Physics-informed networks: three differential equations by TNGD through a device, and by digital methods.

Devices have a stepped clock: their modelled time is added to the wall time, which is that of the host and the emulator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from host_client.blocking import Session, Spu
from host_client.curvature import CurvatureFallback
from host_client.solvers import solve_dense
from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.descent import Descent, descend
from spu_lab.studies.descent_figure import descent_figure
from spu_lab.studies.descent_report import summary, write_points
from spu_lab.studies.descent_verdict import COLUMNS, judge_error, judge_likeness, judge_speed, row
from spu_lab.studies.devices import open_device
from spu_lab.studies.jobs import work_off
from spu_lab.studies.pinn_methods import Growth, by_adam, by_device, by_lbfgs, by_solver
from spu_lab.studies.refinement import RefinedReadings
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.studies.verdicts import Verdict, to_json, write_table
from spu_lab.tasks.pinn import HEAT, POISSON_2D, POISSON_5D, Equation, Problem
from spu_lab.training.report import save_whole
from spu_server.timing import PARTS

SEEDS = (0, 1, 2, 3, 4)

RATES = (0.003, 0.01, 0.03, 0.1)
"""Learning rates of Adam that are tried on the first seed; the one with the lowest error is taken for all."""

BOARD = {"preset": "paper-16-bit", "thermal.temperature": "0", "rails.headroom": "1e6"}
"""The 16-bit device: drive, resistors and readings in 16 bits. Its noise is κ₀ alone. The headroom is that of the
refinement: a residual lies in directions of small curvature, where a solution is up to 1/λ times the drive."""

NOISE = 1e-8
"""κ₀ of the 16-bit device, for drives whose largest value is 1."""

REFINEMENTS = 2
"""Corrections of each reading of the 16-bit device. Without any it learns nothing with the λ of `PLANS`: the rounding
of the drive, 2⁻¹⁶, is amplified by 1/λ."""

LIKENESS = 3.0
"""Factor within which the error of the 16-bit device is to be that of the exact one."""

TNGD, SIXTEEN, DIGITAL, ADAM, LBFGS = "TNGD", "TNGD, 16 bits", "NGD, digital", "Adam", "L-BFGS"


@dataclass(frozen=True)
class Plan:
    """How an equation is solved.

    Attributes:
        equation: what is solved.
        target: relative L2 error to reach.
        limit: steps to reach it in.
        damping: λ on the exact device. 1/t acts as damping as well; a λ below 1/t leaves it to t.
        analog_time: t there, in τ. It is short at first, where long ones gain little, so that device time is saved.
        coarse_damping: λ on the 16-bit device.
        coarse_time: t there, of each reading.
        digital_damping: λ of the digital natural gradient.
        steps: of the three.
        adam_steps: of Adam.
        lbfgs_steps: iterations of L-BFGS.
    """

    equation: Equation
    target: float
    limit: int
    damping: float
    analog_time: Growth
    coarse_damping: float
    coarse_time: float
    digital_damping: float
    steps: int
    adam_steps: int
    lbfgs_steps: int


PLANS = (
    Plan(
        HEAT,
        target=1e-4,
        limit=300,
        damping=1e-7,
        analog_time=Growth(3e5, 3e6, 150),
        coarse_damping=1e-6,
        coarse_time=3e5,
        digital_damping=1e-8,
        steps=300,
        adam_steps=10_000,
        lbfgs_steps=3_000,
    ),
    Plan(
        POISSON_2D,
        target=1e-4,
        limit=200,
        damping=1e-6,
        analog_time=Growth(1e5, 3e5, 50),
        coarse_damping=1e-5,
        coarse_time=1e5,
        digital_damping=1e-7,
        steps=200,
        adam_steps=10_000,
        lbfgs_steps=3_000,
    ),
    Plan(
        POISSON_5D,
        target=1e-3,
        limit=300,
        damping=1e-5,
        analog_time=Growth(1e4, 1e5, 30),
        coarse_damping=1e-5,
        coarse_time=1e5,
        digital_damping=1e-5,
        steps=150,
        adam_steps=5_000,
        lbfgs_steps=2_000,
    ),
)
"""Chosen by single runs of up to 300 steps with seed 0, some with seeds 1 and 2.

- Damping: with λ = 1e-5 and 1e-6 Poisson 2D comes to 3.2e-5 and 1.1e-5 in 200 digital steps, and Heat to 3.7e-4 and
  7.3e-5. Heat needs 1e-7 (2.2e-5), and t of some 1e6 τ. A λ that falls from 1e-4 or 1e-5 in the first 50 steps does
  worse: 1.7e-4 on Poisson 2D after 100, 1.5e-3 on Heat after 150.
- Analog time: one that grows reaches 1e-2 after as many steps, in a fraction of the device time. If it begins too
  short, some seeds end worse: Poisson 2D, seed 1, is at 1.9e-4 after 200 steps from 1e4 τ, and at 1.0e-5 after 100
  from 1e5 τ.
- 16 bits: the smallest λ, of powers of 10, with which corrections still lower the residual. With 1e-6 and t = 3e5 τ
  Poisson 2D learns nothing in 60 steps.
"""

MINIATURE = replace(PLANS[1], target=1e-2, limit=40, steps=40, adam_steps=1_000, lbfgs_steps=200)
"""What ``--quick`` runs with one seed and one learning rate: Poisson 2D, in less than a minute."""


def run(out: Path, spu: str | None, console: Console, *, quick: bool = False) -> None:
    """Solve all equations with all methods and seeds; compare the errors with the targets.

    Args:
        out: folder for ``pinn.csv``, ``.json``, ``.md`` and ``.png``.
        spu: None gives each run a daemon with a stepped clock, whose device is exact or has 16 bits; ``"inproc:"`` puts
            the device into the run's process.
        console: where to show it.
        quick: whether to run the miniature.

    Raises:
        DeviceNotTaken: when another device is given.
        DaemonFailed, SpuError: when a daemon or device fails.
    """
    if spu not in (None, "inproc:"):
        raise DeviceNotTaken("pinn needs two devices, an exact one and one with 16 bits, and starts their daemons")
    plans, seeds, rates = ([MINIATURE], SEEDS[:1], RATES[2:3]) if quick else (PLANS, SEEDS, RATES)
    descents = _descents(plans, seeds, rates, spu, out, console)
    write_points(out / "pinn.csv", descents)
    _report(out, plans, seeds, descents, {"rates": rates}, console)


def _descents(
    plans: Sequence[Plan], seeds: Sequence[int], rates: Sequence[float], spu: str | None, out: Path, console: Console
) -> list[Descent]:
    """Solve each equation by each method with each seed; Adam with each rate for the first one, and then the best."""
    first, *others = seeds
    works = {plan.equation.name: plan for plan in plans}

    def solved(jobs: Iterable[tuple[str, str, int]]) -> list[Descent]:
        asked = {
            f"{name}, {method}, seed {seed}": {
                "problem": name,
                "method": method,
                "seed": seed,
                "settings": _settings(works[name]),
            }
            for name, method, seed in jobs
        }
        return list(work_off(partial(_solve, works, spu), asked, out, console, kind=Descent).values())

    methods = [(method, seeds) for method in (TNGD, SIXTEEN, DIGITAL, LBFGS)]
    methods += [(_adam_at(rate), (first,)) for rate in rates]
    descents = solved((name, method, seed) for name in works for method, those in methods for seed in those)
    best = {}
    for name in works:
        tried = [d for d in descents if d.problem == name and d.method.startswith(ADAM)]
        best[name] = min(tried, key=lambda d: d.best.error)
    descents += [replace(descent, method=ADAM) for descent in best.values()]
    more = solved((name, best[name].method, seed) for name in works for seed in others)
    return descents + [replace(descent, method=ADAM) for descent in more]


def _adam_at(rate: float) -> str:
    return f"{ADAM}, η = {rate:g}"


def _solve(
    plans: Mapping[str, Plan], spu: str | None, problem: str, method: str, seed: int, settings: Mapping[str, Any]
) -> Descent:
    """Solve an equation once; the seed is that of network and points."""
    plan = plans[problem]
    task, network = Problem(plan.equation, seed), plan.equation.build(seed)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Measured: the written-out derivatives take less time so than in a form whose rows have a rule.
        warnings.simplefilter("ignore", CurvatureFallback)

        def through(**options: Any) -> tuple[Session, Callable[[], float]]:
            """Return a session on a device, and its modelled time so far."""
            device = stack.enter_context(open_device(spu, **options))
            return stack.enter_context(device.session(ttl=60.0)), partial(_modelled_seconds, device)

        steps, every = plan.steps, 1
        modelled: Callable[[], float] = float  # 0.0, without a device
        if method == TNGD:
            session, modelled = through()
            stepper = by_device(task, network, session, damping=plan.damping, analog_time=plan.analog_time)
        elif method == SIXTEEN:
            session, modelled = through(driver="analog", driver_option=BOARD)
            solver = RefinedReadings(session, plan.coarse_time, NOISE, REFINEMENTS)
            stepper = by_solver(task, network, solver, plan.coarse_damping)
        elif method == DIGITAL:
            stepper = by_solver(task, network, solve_dense, plan.digital_damping)
        elif method == LBFGS:
            steps, every = plan.lbfgs_steps, 10
            stepper = by_lbfgs(task, network)
        else:
            steps, every = plan.adam_steps, 50
            stepper = by_adam(task, network, rate=float(method.rpartition(" ")[2]), steps=steps)
        points = descend(task, network, stepper, steps, every=every, device_seconds=modelled)
    return Descent(method, problem, seed, points)


def _modelled_seconds(spu: Spu) -> float:
    """Return the modelled time of all that has been asked of a device, s."""
    report = spu.report()
    return sum(report[part] for part in PARTS)


def _report(
    out: Path,
    plans: Sequence[Plan],
    seeds: Sequence[int],
    descents: Sequence[Descent],
    content: Mapping[str, Any],
    console: Console,
) -> None:
    """Write the table, the picture and the JSON."""
    rows: dict[str, dict[str, list[Descent]]] = {
        plan.equation.title: {
            method: [d for d in descents if (d.method, d.problem) == (method, plan.equation.name)]
            for method in (TNGD, SIXTEEN, DIGITAL, ADAM, LBFGS)
        }
        for plan in plans
    }
    verdicts = [verdict for plan in plans for verdict in _judge(plan, rows[plan.equation.title])]
    over = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    title = f"Physics-informed networks: relative L2 error, medians over {over}"
    table = [row(name, runs) for name, by_method in rows.items() for runs in by_method.values()]
    write_table(out / "pinn.md", COLUMNS, table, verdicts, console, title=title)
    caption = (
        f"Median, and min to max, over {over}. TNGD: through a device with a stepped clock, whose "
        "modelled time is added to the wall time of host and emulator. 16 bits: drive, resistors and readings, "
        f"κ₀ = {NOISE:g}, each reading refined up to {REFINEMENTS} times. Adam: the best of "
        f"{len(content['rates'])} learning rates on seed {seeds[0]}, cosine decay."
    )
    picture = descent_figure(rows, title="Physics-informed networks", caption=caption)
    save_whole(picture, out / "pinn.png")
    settings = {"noise": NOISE, "refinements": REFINEMENTS, "board": BOARD, "plans": [_settings(p) for p in plans]}
    results = {
        "status": "finished",
        **provenance(),
        **content,
        "seeds": seeds,
        "settings": settings,
        "runs": [summary(descent) for descent in descents],
        "verdicts": to_json(verdicts),
    }
    write_json(out / "pinn.json", results)
    console.print(f"CSV, JSON, table and plot: {out}", highlight=False)


def _judge(plan: Plan, runs: Mapping[str, Sequence[Descent]]) -> list[Verdict]:
    title = plan.equation.title
    return [
        judge_error(title, runs[TNGD], plan.target, plan.limit),
        *judge_speed(title, runs[TNGD], runs[ADAM]),
        judge_likeness(title, runs[SIXTEEN], runs[TNGD], LIKENESS, plan.limit),
    ]


def _settings(plan: Plan) -> dict[str, Any]:
    """Return a plan with the name of its equation, ready for JSON."""
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return {**values, "equation": plan.equation.name, "analog_time": asdict(plan.analog_time)}
