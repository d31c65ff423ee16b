"""Physics-informed networks: three differential equations by TNGD through a device, and by digital methods.

Devices have a stepped clock: their modelled time is added to the wall time, which is that of the host and the emulator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from host_client.blocking import Session
from host_client.curvature import CurvatureFallback
from host_client.solvers import solve_dense
from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.descent import Descent, descend
from spu_lab.studies.descent_figure import descent_figure
from spu_lab.studies.descent_report import summary, write_points
from spu_lab.studies.descent_verdict import COLUMNS, judge_end, judge_error, judge_likeness, judge_speed, row
from spu_lab.studies.devices import modelled_seconds, open_device
from spu_lab.studies.jobs import work_off
from spu_lab.studies.pinn_methods import by_adam, by_broyden, by_device, by_lbfgs, by_solver
from spu_lab.studies.pinn_plans import (
    ADAM,
    BOARD,
    BROYDEN,
    DIGITAL,
    LBFGS,
    LIKENESS,
    MINIATURE,
    NOISE,
    PLANS,
    RATES,
    REFINEMENTS,
    SEEDS,
    SIXTEEN,
    TNGD,
    Plan,
)
from spu_lab.studies.refinement import RefinedReadings
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.studies.verdicts import Verdict, to_json, write_table
from spu_lab.tasks.pinn import Problem
from spu_lab.training.report import save_whole


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
    _report(out, plans, seeds, rates, descents, console)


def _descents(
    plans: Sequence[Plan], seeds: Sequence[int], rates: Sequence[float], spu: str | None, out: Path, console: Console
) -> list[Descent]:
    """Solve each equation by each method with each seed; Adam with each rate for the first one, and then the best."""
    first, *others = seeds
    by_name = {plan.equation.name: plan for plan in plans}

    def solved(jobs: Iterable[tuple[str, str, int]]) -> list[Descent]:
        arguments = {
            f"{name}, {method}, seed {seed}": {
                "problem": name,
                "method": method,
                "seed": seed,
                "settings": _settings(by_name[name]),
            }
            for name, method, seed in jobs
        }
        return list(work_off(partial(_solve, by_name, spu), arguments, out, console, kind=Descent).values())

    methods = [(method, seeds) for method in (TNGD, SIXTEEN, DIGITAL, LBFGS, BROYDEN)]
    methods += [(_adam_at(rate), (first,)) for rate in rates]
    descents = solved((name, method, seed) for name in by_name for method, those in methods for seed in those)
    best = {}
    for name in by_name:
        tried = [d for d in descents if d.problem == name and d.method.startswith(ADAM)]
        best[name] = min(tried, key=lambda d: d.best.error)
    descents += [replace(descent, method=ADAM) for descent in best.values()]
    more = solved((name, best[name].method, seed) for name in by_name for seed in others)
    return descents + [replace(descent, method=ADAM) for descent in more]


def _adam_at(rate: float) -> str:
    return f"{ADAM}, η = {rate:g}"


def _solve(
    plans: Mapping[str, Plan], spu: str | None, problem: str, method: str, seed: int, settings: Mapping[str, Any]
) -> Descent:
    """Solve an equation once; the seed is that of network and points.

    `settings` are those of the plan: a run that was kept with others is not used.
    """
    plan = plans[problem]
    task, network = Problem(plan.equation, seed), plan.equation.build(seed)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Measured: the written-out derivatives take less time so than in a form whose rows have a rule.
        warnings.simplefilter("ignore", CurvatureFallback)

        def through(**options: Any) -> tuple[Session, Callable[[], float]]:
            """Return a session on a device, and its modelled time so far."""
            device = stack.enter_context(open_device(spu, **options))
            return stack.enter_context(device.session(ttl=60.0)), partial(modelled_seconds, device)

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
        elif method == BROYDEN:
            steps, every = plan.broyden_steps, 10
            stepper = by_broyden(task, network)
        else:
            steps, every = plan.adam_steps, 50
            stepper = by_adam(task, network, rate=float(method.rpartition(" ")[2]), steps=steps)
        points = descend(task, network, stepper, steps, every=every, device_seconds=modelled)
    return Descent(method, problem, seed, points)


def _report(
    out: Path,
    plans: Sequence[Plan],
    seeds: Sequence[int],
    rates: Sequence[float],
    descents: Sequence[Descent],
    console: Console,
) -> None:
    """Write the table, the picture and the JSON."""
    rows: dict[str, dict[str, list[Descent]]] = {
        plan.equation.title: {
            method: [d for d in descents if (d.method, d.problem) == (method, plan.equation.name)]
            for method in (TNGD, SIXTEEN, DIGITAL, ADAM, LBFGS, BROYDEN)
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
        f"{len(rates)} learning rates on seed {seeds[0]}, cosine decay. SSBroyden: self-scaled "
        "quasi-Newton with a dense inverse Hessian."
    )
    picture = descent_figure(rows, title="Physics-informed networks", caption=caption)
    save_whole(picture, out / "pinn.png")
    settings = {"noise": NOISE, "refinements": REFINEMENTS, "board": BOARD, "plans": [_settings(p) for p in plans]}
    results = {
        "status": "finished",
        **provenance(),
        "rates": rates,
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
        *judge_speed(title, runs[TNGD], runs[BROYDEN], plan.target),
        judge_end(title, runs[TNGD], runs[BROYDEN]),
        judge_likeness(title, runs[SIXTEEN], runs[TNGD], LIKENESS, plan.limit),
    ]


def _settings(plan: Plan) -> dict[str, Any]:
    """Return a plan with the name of its equation, ready for JSON."""
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return {**values, "equation": plan.equation.name, "analog_time": asdict(plan.analog_time)}
