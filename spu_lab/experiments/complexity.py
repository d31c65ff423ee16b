"""Time and memory of an iteration of each method, against N, b and d_z: Table 1 and Fig. 2 of arXiv 2405.13817.

One job at a time measures one point with one thread. TNGD is measured with the emulator behind a daemon, and modelled:
what the host does is measured, and the time of the device is that of its timing model.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console

from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.exponents import TOLERANCE
from spu_lab.studies.iteration_cost import MAX_STEPS, SHORT, Cost, Size, measure
from spu_lab.studies.iteration_figure import iteration_figure
from spu_lab.studies.iteration_methods import ANALOG_TIME, CG, DAMPING, METHODS, RATE, TAU
from spu_lab.studies.iteration_plan import FULL, MINIATURE, STATED, Plan
from spu_lab.studies.iteration_verdicts import (
    COLUMNS,
    exponents_to_json,
    fit,
    judge_adam,
    judge_calls,
    judge_exponents,
    judge_speed,
    rows,
)
from spu_lab.studies.jobs import work_off
from spu_lab.studies.study import DeviceNotTaken
from spu_lab.studies.verdicts import to_json, write_table
from spu_lab.training.report import save_whole
from spu_server.timing import Timing

MNIST = Size(105_866, 64, 10)
"""The reference network for MNIST with the paper's batches."""

TITLE = "Exponents of time and memory per iteration in N, b and d_z (those stated in brackets)"

SETTINGS: Final[dict[str, Any]] = {
    "learning_rate": RATE,
    "damping": DAMPING,
    "analog_time": ANALOG_TIME,
    "tau": TAU,
    "cg_iterations": CG.iterations,
    "device": asdict(Timing()),
    "device_with_j_in_full": asdict(Timing(arrays="paper")),
}

NOTES = (
    "Exponents: slopes of straight lines through the logarithms, their means over seeds, with 95 % intervals. Stated "
    "ones are those of the term that is the largest one in the range: below: the interval is under it, and the bound "
    f"holds; within: it is in the interval, or less than {TOLERANCE} under it; above: the bound does not hold.",
    f"Time with a seed: the median of at most {MAX_STEPS} iterations after the first one; where the first one takes "
    f"more than {SHORT:g} s, it alone, which includes the check of the curvature against the autograd graph.",
    "J has b (d_z − 1) rows here, since the Hessian of the cross-entropy has the rank d_z − 1 for each sample.",
    "Memory: the max bytes that torch allocates in addition during one iteration, counted by its profiler; with the "
    "emulator also the growth of the max resident memory of the daemon, and for a modelled device the values that it "
    "holds.",
    "It includes the activations, b numbers a unit, and with NGD the rows of J, from which F is made; the stated "
    "O(N) and O(N²) leave them out.",
    "Structured: with the factors of each layer's J, which are never multiplied out. The others have J in full, or "
    "model calls, as in the paper.",
)

CAPTION = (
    "One thread of a CPU; networks of three linear layers. NGD: where N × N float64 values fit into 1 GiB. TNGD, "
    "device: the host's part is measured, and that of the device modelled (50 Gb/s, 16 bits, τ = 1 µs, t = 50 τ, one "
    "converter a cell)."
)

Costs = Mapping[tuple[str, Size], Cost]
"""Costs by label of the method and requested size."""


def run(out: Path, spu: str | None, console: Console, *, quick: bool = False) -> None:
    """Measure all methods at all sizes; compare the exponents and the times with what the paper states.

    Args:
        out: folder for ``complexity.csv``, ``.json``, ``.md`` and ``.png``.
        spu: None gives each point of the emulator a daemon; ``"inproc:"`` puts the emulator into the process.
        console: where to show it.
        quick: whether to run the miniature, whose sizes are too small for the exponents.

    Raises:
        DeviceNotTaken: when another device is given.
        DaemonFailed, SpuError: when a daemon or device fails.
    """
    if spu not in (None, "inproc:"):
        raise DeviceNotTaken("complexity measures devices with nothing else to do, and starts their daemons")
    plan = MINIATURE if quick else FULL
    costs, mnist = _measure(plan, spu, out, console)
    with (out / "complexity.csv").open("w", newline="", encoding="utf-8") as stream:
        _write_costs(stream, costs.values(), mnist.values())
    _report(out, plan, costs, mnist, console)


def _measure(plan: Plan, spu: str | None, out: Path, console: Console) -> tuple[Costs, Mapping[str, Cost]]:
    """Measure all points, and those on the network for MNIST by method."""
    points = [(label, size) for label in METHODS for size in plan.sizes_of(label)]
    jobs = {f"{label}, {size}": _job(label, size, "perceptron", plan) for label, size in points}
    jobs |= {f"{label}, MNIST": _job(label, MNIST, "mnist", plan) for label in plan.mnist}
    done = work_off(partial(measure, spu=spu), jobs, out, console, kind=Cost, at_once=1)
    costs = {(label, size): done[f"{label}, {size}"] for label, size in points}
    return costs, {label: done[f"{label}, MNIST"] for label in plan.mnist}


def _job(label: str, size: Size, network: str, plan: Plan) -> dict[str, object]:
    """Return the arguments of `measure`."""
    repetitions = {"repeats": plan.repeats, "seconds_each": plan.seconds_each}
    return {"method": label, "size": size, "network": network, **repetitions}


def _write_costs(stream: TextIO, costs: Iterable[Cost], mnist: Iterable[Cost]) -> None:
    """Write a line for each point and seed."""
    writer = csv.writer(stream)
    writer.writerow(("network", "method", "N", "b", "d_z", "seed", "seconds", "modelled_seconds", "bytes", "calls"))
    for network, group in (("perceptron", costs), ("mnist", mnist)):
        for cost in group:
            size = cost.size.parameters, cost.size.batch, cost.size.outputs
            for seed, seconds in enumerate(cost.seconds):
                writer.writerow((network, cost.method, *size, seed, seconds, cost.modelled, cost.nbytes, cost.calls))


def _report(out: Path, plan: Plan, costs: Costs, mnist: Mapping[str, Cost], console: Console) -> None:
    """Write the table, the picture and the JSON."""
    fitted = {
        label: fit([costs[label, size] for size in sweeps.sizes], sweeps) for label, sweeps in plan.sweeps.items()
    }
    calls = {label: costs[label, sweeps.sizes[-1]].calls for label, sweeps in plan.sweeps.items()}
    against_n = [costs[label, size] for label, sweeps in plan.figure.items() for size in sweeps.parameters]
    against_outputs = [costs[label, size] for label, sweeps in plan.figure.items() for size in sweeps.outputs]
    verdicts = [
        *(
            v
            for label in STATED
            if METHODS[label].form == "paper"
            for v in judge_exponents(label, fitted[label], plan.sweeps[label])
        ),
        judge_calls(calls),
        judge_adam(mnist),
        *(judge_speed(name, against_n) for name in ("NGD", "NGD-CG", "NGD-Woodbury")),
    ]
    table = [row for label in METHODS for row in rows(label, fitted[label], calls[label])]
    write_table(out / "complexity.md", COLUMNS, table, verdicts, console, title=TITLE, notes=NOTES)
    fixed = plan.figure["Adam"]
    left, right = fixed.parameters[0], fixed.outputs[0]
    picture = iteration_figure(
        against_n,
        against_outputs,
        title="Time of an iteration",
        fixed=(f"b = {left.batch}, d_z = {left.outputs}", f"b = {right.batch}, N ≈ {right.parameters:,}"),
        caption=f"Mean and standard deviation over {plan.repeats} seeds. {CAPTION}",
    )
    save_whole(picture, out / "complexity.png")
    write_json(
        out / "complexity.json",
        {
            "status": "finished",
            **provenance(),
            "seeds": list(range(plan.repeats)),
            "settings": SETTINGS,
            "sweeps": {label: asdict(sweeps) for label, sweeps in plan.sweeps.items()},
            "exponents": {label: exponents_to_json(label, exponents) for label, exponents in fitted.items()},
            "mnist": [asdict(cost) for cost in mnist.values()],
            "points": [asdict(cost) for cost in costs.values()],
            "verdicts": to_json(verdicts),
        },
    )
    console.print(f"CSV, JSON, table and plot: {out}", highlight=False)
