"""One linear system solved by the emulator, program and reading together, compared with other ways to solve it.

Against thermox: dense systems of N = 256, 512 and 1024 cells in float64 with noise, both over the same 50 τ from the
drive. F has a random basis and the eigenvalues 1, 1/2, …, 1/N, as curvatures fall off; λ = 0.01. thermox decomposes
within each draw, as the emulator does within each program; its b, which is the solution of the system, is given to it,
and it is not compiled as a whole, which was slower. All draws are checked to come from the law of the process.

Against the others: the reference network after 30 steps of Adam on MNIST, one batch of 64, exact curvature in float32
without noise, λ = 0.01, t = 50 τ. (Later, F has eigenvalues above 20, and Euler–Maruyama with the paper's δt = 0.1 τ
diverges.) "The whole solve" is capture, with its forward pass, program and reading: to compare with ways that call
the model. Equal residual means that ‖(F + λI) x − b‖ is no larger than the reading's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from host_client import connect
from host_client.curvature import Capture
from host_client.solvers.woodbury import solve_woodbury
from spu_lab.benchmarks.dense_systems import DAMPING, NOISE, check_emulator, check_thermox, dense_system, thermox_draw
from spu_lab.benchmarks.iterations import euler_maruyama, kept_graph_product, model_product, to_residual
from spu_lab.benchmarks.networks import Network
from spu_lab.benchmarks.targets import Target
from spu_lab.benchmarks.timing import Subjects, alone, log, medians
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.task import Task
from spu_link.operators import Dense, FactorOperator
from spu_link.program import Program
from spu_server.dynamics import transition_of

TIME, LONG = 50.0, 1000.0
DELTA = 0.1
SIZES = (256, 512, 1024)

RATIOS = {
    "solve_speedup_vs_thermox_256": "one draw of `thermox.sample`, over program and reading in this process; N = 256.",
    "solve_speedup_vs_thermox_512": "the same, N = 512.",
    "solve_speedup_vs_thermox_1024": "the same, N = 1024.",
    "dynamics_speedup_vs_thermox_256": "the same draw, over the emulator's mathematics alone, without checking and "
    "copying the program; N = 256.",
    "dynamics_speedup_vs_thermox_512": "the same, N = 512.",
    "dynamics_speedup_vs_thermox_1024": "the same, N = 1024.",
    "solve_speedup_vs_thermox_1024_flat": "as solve_speedup_vs_thermox_1024, with eigenvalues evenly spaced up to 1, "
    "which is harder for the emulator and the same for thermox.",
    "solve_speedup_vs_euler_maruyama": "the paper's simulation, δt = 0.1 τ, three model calls a step, over the whole "
    "solve.",
    "solve_alone_speedup_vs_euler_maruyama": "the same, over program and reading.",
    "solve_speedup_vs_euler_maruyama_kept_graph": "the same simulation with the graph of one forward pass kept for "
    "all steps, over the whole solve.",
    "solve_speedup_vs_cg": "NGD-CG, a forward-mode and a backward pass an iteration, to equal residual, over the "
    "whole solve.",
    "solve_alone_speedup_vs_cg": "the same, over program and reading.",
    "solve_speedup_vs_cg_kept_graph": "NGD-CG with the graph of one forward pass kept for all iterations, over the "
    "whole solve.",
    "solve_speedup_vs_cg_on_factor": "conjugate gradients with products of the captured factor, to equal residual, "
    "over program and reading.",
    "solve_speedup_vs_cg_at_1000_tau": "NGD-CG to the residual of a reading at t = 1000 τ, over the whole solve with "
    "that reading.",
    "solve_speedup_vs_woodbury": "the explicit Woodbury solution of the captured factor, over program and reading.",
    "dynamics_vs_solve": "the emulator's mathematics alone, over program and reading.",
}
TARGETS = {
    "solve_speedup_vs_thermox_512": Target("at least", 20),
    "solve_speedup_vs_thermox_1024": Target("at least", 50),
    "solve_speedup_vs_euler_maruyama": Target("at least", 100),
    "solve_speedup_vs_cg": Target("at least", 1),
}


def run(
    sizes: Sequence[int] = SIZES,
    batch: int = 64,
    rounds: int = 3,
    euler_steps: int = 50,
    task: Callable[[], Task] = mnist,
) -> dict[str, Any]:
    """Measure; every side has its turn in each of `rounds` rounds.

    Args:
        sizes: three numbers of cells, in place of 256, 512 and 1024.
        batch: samples for the reference network.
        rounds: how often each side has its turn.
        euler_steps: Euler–Maruyama steps that are timed; the time is scaled to all 500.
        task: data for the reference network.
    """
    log.info("checking the laws of all draws")
    laws = {"emulator": alone(check_emulator, min(sizes)), "thermox": alone(check_thermox, min(sizes))}
    dense = {"ours": partial(_dense_ours, sizes), "thermox": partial(_dense_thermox, sizes)}
    seconds = medians(dense, rounds=rounds, repeats=3, warmup=1)
    log.info("training the reference network a little, and solving its system in every way")
    network = alone(warm_network, batch, task)
    agreement = alone(check_agreement, network)
    tolerances = agreement["residual"], agreement["residual_at_1000_tau"]
    sides = {
        "ours": partial(_ours, network),
        "euler": partial(_euler, network, euler_steps),
        "cg": partial(_cg, network, *tolerances),
        "woodbury": partial(_woodbury, network),
    }
    seconds |= medians(sides, rounds=rounds, repeats=3, warmup=1)
    solve, whole = seconds["ours_solve"], seconds["ours_capture_and_solve"]
    euler = TIME / DELTA / euler_steps
    names = dict(zip(SIZES, sizes, strict=True))
    return {
        "ratios": {
            **{
                f"{way}_speedup_vs_thermox_{name}": seconds[f"thermox_draw_{n}"] / seconds[f"ours_{way}_{n}"]
                for way in ("solve", "dynamics")
                for name, n in names.items()
            },
            "solve_speedup_vs_thermox_1024_flat": seconds[f"thermox_draw_{max(sizes)}"]
            / seconds[f"ours_solve_flat_{max(sizes)}"],
            "solve_speedup_vs_euler_maruyama": seconds["euler_model_calls"] * euler / whole,
            "solve_alone_speedup_vs_euler_maruyama": seconds["euler_model_calls"] * euler / solve,
            "solve_speedup_vs_euler_maruyama_kept_graph": seconds["euler_kept_graph"] * euler / whole,
            "solve_speedup_vs_cg": seconds["cg_model_calls"] / whole,
            "solve_alone_speedup_vs_cg": seconds["cg_model_calls"] / solve,
            "solve_speedup_vs_cg_kept_graph": seconds["cg_kept_graph"] / whole,
            "solve_speedup_vs_cg_on_factor": seconds["cg_on_factor"] / solve,
            "solve_speedup_vs_cg_at_1000_tau": seconds["cg_at_1000_tau"] / seconds["ours_capture_and_solve_1000_tau"],
            "solve_speedup_vs_woodbury": seconds["woodbury_solve"] / solve,
            "dynamics_vs_solve": seconds["ours_dynamics"] / solve,
        },
        "seconds": seconds,
        "agreement": agreement,
        "laws": laws,
        "settings": {
            "sizes": list(sizes),
            "batch": batch,
            "rounds": rounds,
            "damping": DAMPING,
            "noise": NOISE,
            "analog_time": TIME,
            "delta": DELTA,
            "euler_steps_timed": euler_steps,
        },
    }


def warm_network(batch: int, task: Callable[[], Task], steps: int = 30) -> Network:
    """The reference network after some steps of Adam, and the next batch."""
    data = task()
    model, batches = data.build(0), data.batches(batch, seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _, (inputs, targets) in zip(range(steps), batches, strict=False):
        adam.zero_grad()
        data.criterion(model(inputs), targets).backward()
        adam.step()
    adam.zero_grad()
    return Network(model, data.criterion, *next(batches))


def check_agreement(network: Network) -> dict[str, float]:
    """Residuals of our readings, and how far the others are from them; raises `ArithmeticError` if too far."""
    operator, drive = system(network)
    exact, b = operator.map(Tensor.double), drive.double()

    def residual(x: Tensor) -> float:
        return float((exact.curvature(x.double()) + DAMPING * x.double() - b).norm() / b.norm())

    with connect("inproc:") as spu, spu.session() as session:
        ours, long = (
            session.solve(operator, drive, damping=DAMPING, analog_time=t, start="drive").value for t in (TIME, LONG)
        )
    stepped = euler_maruyama(
        model_product(network), drive, damping=DAMPING, noise=0.0, delta=DELTA, steps=round(TIME / DELTA)
    )
    difference = float((stepped - ours).norm() / ours.norm())
    digital, _ = solve_woodbury(operator, drive, DAMPING)
    found = {
        "largest_eigenvalue": float(torch.linalg.eigvalsh(operator.gram())[-1]),
        "residual": residual(ours),
        "residual_at_1000_tau": residual(long),
        "euler_maruyama_difference": difference,
        "at_1000_tau_difference_from_woodbury": float((long - digital).norm() / digital.norm()),
    }
    for name, product in {"model_calls": model_product(network), "kept_graph": kept_graph_product(network)}.items():
        x, iterations = to_residual(product, drive, damping=DAMPING, tolerance=found["residual"])
        found |= {f"cg_{name}_products": iterations, f"cg_{name}_residual": residual(x)}
    _, iterations = to_residual(model_product(network), drive, damping=DAMPING, tolerance=found["residual_at_1000_tau"])
    found["cg_products_at_1000_tau"] = iterations
    # Euler–Maruyama's own error is of first order in δt; at 1000 τ, e⁻¹⁰ of the start is left.
    if not (difference <= 0.05 and found["at_1000_tau_difference_from_woodbury"] <= 1e-3):
        raise ArithmeticError(f"the ways of solving differ: {found}")
    return found


def system(network: Network) -> tuple[FactorOperator, Tensor]:
    """A by exact capture, and the gradient."""
    capture = Capture(network.model, network.criterion, curvature="exact")
    drive = torch.cat([g.flatten() for g in torch.autograd.grad(network.loss(), network.trained())])
    operator = capture.operator
    capture.close()
    return operator, drive


def _dense_ours(sizes: Sequence[int]) -> Subjects:
    session = connect("inproc:").open_session()
    subjects: dict[str, Callable[[], object]] = {}
    settings: dict[str, Any] = {"damping": DAMPING, "noise": NOISE, "start": "drive"}
    for n in sizes:
        matrix, drive = dense_system(n)
        subjects[f"solve_{n}"] = partial(session.solve, Dense(matrix), drive, analog_time=TIME, **settings)
        subjects[f"dynamics_{n}"] = partial(_dynamics, Program(Dense(matrix), drive, **settings))
    matrix, drive = dense_system(max(sizes), flat=True)
    subjects[f"solve_flat_{max(sizes)}"] = partial(session.solve, Dense(matrix), drive, analog_time=TIME, **settings)
    return subjects


def _dense_thermox(sizes: Sequence[int]) -> Subjects:
    return {f"draw_{n}": thermox_draw(n) for n in sizes}


def _dynamics(program: Program, time: float = TIME) -> Tensor:
    transition = transition_of(program)
    return transition.step(transition.drive, time, lambda: torch.randn(program.cells, dtype=torch.float64)).state


def _ours(network: Network) -> Subjects:
    session = connect("inproc:").open_session()
    operator, drive = system(network)
    capture = Capture(network.model, network.criterion, curvature="exact")
    program = Program(operator, drive, damping=DAMPING, start="drive")

    def solve(operator: FactorOperator, time: float) -> None:
        session.solve(operator, drive, damping=DAMPING, analog_time=time, start="drive")

    def capture_and_solve(time: float) -> None:
        network.loss()
        solve(capture.operator, time)

    return {
        "solve": partial(solve, operator, TIME),
        "dynamics": partial(_dynamics, program),
        "capture_and_solve": partial(capture_and_solve, TIME),
        "capture_and_solve_1000_tau": partial(capture_and_solve, LONG),
    }


def _euler(network: Network, steps: int) -> Subjects:
    _, drive = system(network)

    def simulate(product: Callable[[Tensor], Tensor]) -> None:
        euler_maruyama(product, drive, damping=DAMPING, noise=0.0, delta=DELTA, steps=steps)

    return {
        "model_calls": partial(simulate, model_product(network)),
        "kept_graph": partial(simulate, kept_graph_product(network)),
    }


def _cg(network: Network, tolerance: float, tighter: float) -> Subjects:
    operator, drive = system(network)

    def solve(product: Callable[[Tensor], Tensor], tolerance: float) -> None:
        to_residual(product, drive, damping=DAMPING, tolerance=tolerance)

    return {
        "model_calls": lambda: solve(model_product(network), tolerance),
        "kept_graph": lambda: solve(kept_graph_product(network), tolerance),
        "on_factor": lambda: solve(operator.curvature, tolerance),
        "at_1000_tau": lambda: solve(model_product(network), tighter),
    }


def _woodbury(network: Network) -> Subjects:
    operator, drive = system(network)
    return {"solve": lambda: solve_woodbury(operator, drive, DAMPING)}
