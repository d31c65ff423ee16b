"""One training step on five networks: TNGD through a daemon and in this process, compared with a step of Adam.

A step is forward pass, backward pass and update. TNGD's cells start at the drive, which keeps all steps alike; the
settings are λ = 0.01, t = 50 τ, a free-running device, lr = 1e-4 so that the networks stay where they are. The networks
are those of `spu_lab.benchmarks.networks`; all but the reference network see random numbers of the right shapes.
"Exact" has b·(d − 1) rows, Monte-Carlo one row a sample.

Each of these steps is synchronous: it waits for the reading of its own program. A one-step-stale (asynchronous) step
uses the reading of the program before (`NoOlderThan(programs=1)`) while the device works on its own; host and emulator
then compute with one thread each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from host_client import TNGD, Session, connect
from host_client.curvature import Capture
from host_client.curvature.losses import Kind
from host_client.loop import Freshness, NoOlderThan
from spu_lab.benchmarks.capture import jacobian_ways
from spu_lab.benchmarks.networks import BATCHES, NETWORKS, TITLES, Network
from spu_lab.benchmarks.targets import Target
from spu_lab.benchmarks.timing import Subjects, alone, log, medians
from spu_lab.local_daemon import local_daemon
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.task import Task
from spu_link.program import StartPolicy

SETTINGS: dict[str, Any] = {"lr": 1e-4, "damping": 0.01, "analog_time": 50.0}
CURVATURES: tuple[Kind, ...] = ("exact", "mc")

SUFFIXES = {name: "" if name == "reference" else f"_{name}" for name in NETWORKS}
"""End of a ratio's name, by network."""

STEPS = {
    "exact": "step with the exact GGN through a daemon",
    "mc": "step with a one-sample Monte-Carlo Fisher matrix through a daemon",
    "exact_free": "asynchronous step with the exact GGN, host and daemon with one thread each",
    "mc_free": "asynchronous step with the Monte-Carlo Fisher matrix, host and daemon with one thread each",
}

RATIOS = {
    "step_keep_vs_adam": "as step_exact_vs_adam with the default start, from the cells' current state: the emulator "
    "then also works out how they went on under the old program while the host was busy.",
    "step_grpc_vs_inprocess": "the exact step through a daemon, over that on a device in the training process.",
    "step_mc_grpc_vs_inprocess": "the same of the Monte-Carlo step.",
    "step_exact_vs_sum_of_parts": "the exact step through a daemon, over forward, capture and backward pass plus "
    "program and reading, timed one after the other: below 1 where host and device work at once.",
    "capture_speedup_vs_jacrev": "making the factor A = SᵀJ / √b in full from `torch.func` vmap(jacrev), over making "
    "it by exact capture, both with the forward pass; `tngd bench capture` compares more ways.",
    "upload_shrink_vs_jacobian": "bytes of the float32 Jacobian of all logits, over bytes of the tensors of an upload.",
    **{
        f"step_{step}_vs_adam{suffix}": f"{words}, over a step of Adam; {TITLES[name]}, b = {BATCHES[name]}."
        for name, suffix in SUFFIXES.items()
        for step, words in STEPS.items()
    },
}
TARGETS = {
    "step_grpc_vs_inprocess": Target("at most", 1.1),
    **{f"step_exact_vs_adam{suffix}": Target("at most", 12) for suffix in SUFFIXES.values()},
    **{f"step_mc_vs_adam{suffix}": Target("at most", 3) for suffix in SUFFIXES.values()},
}


def run(
    rounds: int = 6,
    batches: Mapping[str, int] = BATCHES,
    task: Callable[[], Task] = mnist,
) -> dict[str, Any]:
    """Measure; every side has its turn in each of `rounds` rounds, fewer on the larger networks.

    Args:
        rounds: for the reference network.
        batches: samples in a batch, for every network.
        task: data for the reference network.
    """
    seconds: dict[str, dict[str, float]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for name, batch in batches.items():
        log.info("network %s", name)
        make = partial(NETWORKS[name], batch, task) if name == "reference" else partial(NETWORKS[name], batch)
        sizes[name] = alone(sizes_of, make)
        counts = {"rounds": rounds} if name == "reference" else {"rounds": -(-rounds // 3), "repeats": 2, "warmup": 1}
        with local_daemon() as address, local_daemon(threads=1) as single:
            sides = {
                "plain": partial(_plain, make, parts=name == "reference"),
                "grpc": partial(_device, make, address, parts=name == "reference"),
                "inprocess": partial(_device, make, "inproc:", parts=name == "reference"),
                "free": partial(_free, make, single),
            }
            seconds[name] = medians(sides, **counts)
            if name == "reference":
                seconds[name] |= medians({"func": partial(_factor_by_jacrev, make)}, rounds=1, repeats=3)
    first = seconds["reference"]
    size = sizes["reference"]
    parts = first["plain_forward_capture_backward"] + first["grpc_solve"]
    return {
        "ratios": {
            "step_keep_vs_adam": first["grpc_keep_step"] / first["plain_adam_step"],
            "step_grpc_vs_inprocess": first["grpc_exact_step"] / first["inprocess_exact_step"],
            "step_mc_grpc_vs_inprocess": first["grpc_mc_step"] / first["inprocess_mc_step"],
            "step_exact_vs_sum_of_parts": first["grpc_exact_step"] / parts,
            "capture_speedup_vs_jacrev": first["func_factor_by_jacrev"] / first["plain_capture_exact"],
            "upload_shrink_vs_jacobian": size["jacobian_bytes"] / (size["exact_bytes"] + 4 * size["parameters"]),
            **{
                f"step_{kind}_vs_adam{SUFFIXES[name]}": times[f"{step}_step"] / times["plain_adam_step"]
                for name, times in seconds.items()
                for curvature in CURVATURES
                for kind, step in ((curvature, f"grpc_{curvature}"), (f"{curvature}_free", f"free_{curvature}"))
            },
        },
        "seconds": seconds,
        "sizes": sizes,
        "settings": {**SETTINGS, "batches": dict(batches), "rounds": rounds},
    }


def sizes_of(make: Callable[[], Network]) -> dict[str, int]:
    """Parameters, bytes of the logits' float32 Jacobian, and rows and bytes of each curvature's operator."""
    network = make()
    logits = network.model(network.inputs).numel()
    sizes = {"parameters": network.parameters, "jacobian_bytes": 4 * logits * network.parameters}
    for curvature in CURVATURES:
        capture = Capture(network.model, network.criterion, curvature=curvature)
        network.loss()
        sizes |= {f"{curvature}_rows": capture.operator.shape[0], f"{curvature}_bytes": capture.operator.nbytes}
        capture.close()
    return sizes


def _plain(make: Callable[[], Network], *, parts: bool) -> Subjects:
    """Return the subjects that need no device; with `parts` also all of a TNGD step that the host does."""
    plain, adam = make(), make()

    def forward_backward() -> None:
        plain.model.zero_grad()
        plain.loss().backward()

    subjects: dict[str, Callable[[], object]] = {
        "adam_step": _step(adam, torch.optim.Adam(adam.trained(), lr=SETTINGS["lr"])),
        "forward_backward": forward_backward,
    }
    for curvature in CURVATURES:
        subjects[f"capture_{curvature}"] = _captured(make(), curvature, backward=False)
    if parts:
        subjects["forward_capture_backward"] = _captured(make(), "exact", backward=True)
    return subjects


def _captured(network: Network, curvature: Kind, *, backward: bool) -> Callable[[], object]:
    capture = Capture(network.model, network.criterion, curvature=curvature)

    def captured() -> None:
        loss = network.loss()
        assert capture.operator.parameters
        if backward:
            network.model.zero_grad()
            loss.backward()

    return captured


def _factor_by_jacrev(make: Callable[[], Network]) -> Subjects:
    return {"factor_by_jacrev": jacobian_ways(make())["factor_by_jacrev"]}


def _device(make: Callable[[], Network], address: str, *, parts: bool) -> Subjects:
    """TNGD steps on a device; with `parts` also one that keeps the cells' state, and program and reading alone."""
    # Open until the process ends: the daemon sees it go.
    session = connect(address, timeout=300.0).open_session()
    steps = {f"{curvature}_step": _tngd(make, session, curvature) for curvature in CURVATURES}
    if not parts:
        return steps
    network = make()
    capture = Capture(network.model, network.criterion, curvature="exact")
    drive = torch.cat([g.flatten() for g in torch.autograd.grad(network.loss(), network.trained())])
    operator = capture.operator
    capture.close()
    return {
        **steps,
        "keep_step": _tngd(make, session, "exact", start="keep"),
        "upload": lambda: session.program(operator, drive, damping=SETTINGS["damping"], start="drive"),
        "solve": lambda: session.solve(
            operator, drive, damping=SETTINGS["damping"], analog_time=SETTINGS["analog_time"], start="drive"
        ),
    }


def _free(make: Callable[[], Network], address: str) -> Subjects:
    """Return asynchronous TNGD steps, each with the reading of the program before."""
    torch.set_num_threads(1)
    session = connect(address, timeout=300.0).open_session()
    before = NoOlderThan(programs=1)
    return {f"{curvature}_step": _tngd(make, session, curvature, freshness=before) for curvature in CURVATURES}


def _tngd(
    make: Callable[[], Network],
    session: Session,
    curvature: Kind,
    *,
    start: StartPolicy = "drive",
    freshness: Freshness = "program",
) -> Callable[[], Tensor]:
    network = make()
    options: dict[str, Any] = {"curvature": curvature, "start": start, "freshness": freshness}
    return _step(network, TNGD(network.model, network.criterion, session, **options, **SETTINGS))


def _step(network: Network, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    def step() -> Tensor:
        loss = network.loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step
