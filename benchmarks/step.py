"""One training step on five networks: TNGD through a daemon and in this process, beside a step of Adam.

A step is forward pass, backward pass and update. TNGD's cells start at the drive, which keeps all steps alike; the
settings are λ = 0.01, t = 50 τ, a free-running device, lr = 1e-4 so that the networks stay where they are. The networks
are those of `benchmarks.networks`; all but the reference network see random numbers of the right shapes. "Exact" has
b·(d − 1) rows, Monte-Carlo one row a sample.

Each of these steps waits for the reading of its own program. A free one goes along the reading of the program before
(`NoOlderThan(programs=1)`) while the device works on its own; host and emulator then compute with one thread each.

Ratios:
    step_exact_vs_adam: the reference CNN's step with the exact GGN through a daemon, over a step of Adam.
    step_mc_vs_adam: the same with a one-sample Monte-Carlo Fisher matrix.
    step_keep_vs_adam: as step_exact_vs_adam with the default start, from where the cells stand: the emulator then also
        works out how they went on under the old program while the host was busy.
    step_grpc_vs_inprocess: the exact step through a daemon, over that on a device in the training process.
    step_mc_grpc_vs_inprocess: the same of the Monte-Carlo step.
    step_exact_vs_sum_of_parts: the exact step through a daemon, over forward, capture and backward pass plus program
        and reading, timed one after the other: below 1 where host and device work at once.
    capture_speedup_vs_jacrev: making the factor A = SᵀJ / √b in full from `torch.func` vmap(jacrev), over making it by
        exact capture, both with the forward pass; `tngd bench capture` tells more.
    upload_shrink_vs_jacobian: bytes of the float32 Jacobian of all logits, over bytes of the tensors of one upload.
    step_exact_vs_adam_mlp: exact step through a daemon over Adam's, 4-layer MLP, N = 2.9 million, b = 64.
    step_mc_vs_adam_mlp: the same with Monte-Carlo.
    step_exact_vs_adam_resnet: exact step over Adam's, ResNet-20 with GroupNorm on 32 × 32 images, N = 0.27 million,
        b = 32.
    step_mc_vs_adam_resnet: the same with Monte-Carlo.
    step_exact_vs_adam_transformer: exact step over Adam's, transformer encoder of 4 layers, N = 0.93 million, b = 32.
    step_mc_vs_adam_transformer: the same with Monte-Carlo.
    step_exact_vs_adam_lora: exact step over Adam's, LoRA on pretrained MiniLM, N = 0.15 million, b = 16,
        32 tokens.
    step_mc_vs_adam_lora: the same with Monte-Carlo.
    step_exact_free_vs_adam: a free step with the exact GGN over Adam's (which has both threads), reference CNN.
    step_mc_free_vs_adam: the same with Monte-Carlo.
    step_exact_free_vs_adam_mlp: as step_exact_free_vs_adam, 4-layer MLP.
    step_mc_free_vs_adam_mlp: the same with Monte-Carlo.
    step_exact_free_vs_adam_resnet: as step_exact_free_vs_adam, ResNet-20.
    step_mc_free_vs_adam_resnet: the same with Monte-Carlo.
    step_exact_free_vs_adam_transformer: as step_exact_free_vs_adam, transformer encoder.
    step_mc_free_vs_adam_transformer: the same with Monte-Carlo.
    step_exact_free_vs_adam_lora: as step_exact_free_vs_adam, LoRA.
    step_mc_free_vs_adam_lora: the same with Monte-Carlo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.capture import jacobian_ways
from benchmarks.networks import BATCHES, NETWORKS, Network
from benchmarks.timing import Subjects, alone, log, medians
from host_client import TNGD, Session, connect
from host_client.curvature import Capture
from host_client.curvature.losses import Kind
from host_client.local_daemon import local_daemon
from host_client.loop import Freshness, NoOlderThan
from host_client.tasks.mnist import mnist
from host_client.tasks.task import Task
from spu_link.program import StartPolicy

SETTINGS: dict[str, Any] = {"lr": 1e-4, "damping": 0.01, "analog_time": 50.0}
CURVATURES: tuple[Kind, ...] = ("exact", "mc")


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
        with local_daemon() as address, local_daemon(threads=1) as beside:
            sides = {
                "plain": partial(_plain, make, parts=name == "reference"),
                "grpc": partial(_device, make, address, parts=name == "reference"),
                "inprocess": partial(_device, make, "inproc:", parts=name == "reference"),
                "free": partial(_free, make, beside),
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
                f"step_{kind}_vs_adam{suffix}": times[f"{step}_step"] / times["plain_adam_step"]
                for name, times in seconds.items()
                for suffix in ("" if name == "reference" else f"_{name}",)
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
    """What needs no device; with `parts` also all of a TNGD step that the host does."""
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
    """TNGD steps beside the device, each along the reading of the program before."""
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
    freshness: Freshness = "this program",
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
