"""One training step on the reference network: its parts, over gRPC and in this process, beside a step of Adam.

Ratios:
    step_exact_vs_adam: a whole TNGD step through a daemon (exact GGN, start from the drive), over a whole step of Adam.
    step_keep_vs_adam: the same with the default start, from where the cells stand: the emulator then also works out how
        they went on under the old program while the host was busy.
    step_grpc_vs_inprocess: the same step through a daemon, over that on a device in the training process.
    capture_speedup_vs_jacrev: making the curvature factor A = SᵀJ / √b in full from `torch.func` vmap(jacrev), over
        making it by capture (both with the forward pass).
    capture_speedup_vs_jacrev_alone: vmap(jacrev) alone, its Jacobian left in pieces and without S, over capture.
    capture_speedup_vs_jacrev_of_batch: jacrev of the whole batch's logits, over capture.
    upload_shrink_vs_jacobian: bytes of the float32 Jacobian of all logits, over bytes of tensors in one upload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from benchmarks.timing import Subjects, medians
from host_client import TNGD, Session, connect
from host_client.curvature import Capture
from host_client.local_daemon import local_daemon
from host_client.tasks.mnist import mnist
from host_client.tasks.task import Task

BATCH = 64
SETTINGS: dict[str, Any] = {"lr": 0.01, "damping": 0.01, "analog_time": 50.0}


def run(rounds: int = 8) -> dict[str, Any]:
    """Measure; every side has its turn in each of `rounds` rounds."""
    task = mnist()
    with local_daemon() as address:
        sides: dict[str, Callable[[], Subjects]] = {
            "plain": _plain,
            "grpc": partial(_device, address),
            "inprocess": partial(_device, "inproc:"),
        }
        seconds = medians(sides, rounds=rounds)
    seconds |= medians({"func": _jacobians}, rounds=1, repeats=3)
    uploaded = _upload_bytes(task)
    parameters = sum(p.numel() for p in task.build(0).parameters())
    jacobian = BATCH * task.outputs * parameters * 4
    capture = seconds["plain_capture"]
    return {
        "ratios": {
            "step_exact_vs_adam": seconds["grpc_step"] / seconds["plain_adam_step"],
            "step_keep_vs_adam": seconds["grpc_keep_step"] / seconds["plain_adam_step"],
            "step_grpc_vs_inprocess": seconds["grpc_step"] / seconds["inprocess_step"],
            "capture_speedup_vs_jacrev": seconds["func_factor_by_jacrev"] / capture,
            "capture_speedup_vs_jacrev_alone": seconds["func_jacrev"] / capture,
            "capture_speedup_vs_jacrev_of_batch": seconds["func_jacrev_of_batch"] / capture,
            "upload_shrink_vs_jacobian": jacobian / uploaded,
        },
        "seconds": seconds,
        "upload_bytes": uploaded,
        "jacobian_bytes": jacobian,
        "settings": {**SETTINGS, "batch": BATCH, "parameters": parameters, "rounds": rounds},
        "threads": torch.get_num_threads(),
    }


def _first_batch(task: Task) -> tuple[Tensor, Tensor]:
    return next(iter(task.batches(BATCH, seed=0)))


def _upload_bytes(task: Task) -> int:
    model, (inputs, targets) = task.build(0), _first_batch(task)
    capture = Capture(model, task.criterion)
    task.criterion(model(inputs), targets)
    return capture.operator.nbytes + 4 * capture.operator.parameters


def _plain() -> Subjects:
    """What needs no device."""
    task = mnist()
    inputs, targets = batch = _first_batch(task)
    plain, captured = task.build(0), task.build(0)
    capture = Capture(captured, task.criterion)
    adam = task.build(0)

    def forward_backward() -> None:
        plain.zero_grad()
        task.criterion(plain(inputs), targets).backward()

    def captures() -> None:
        task.criterion(captured(inputs), targets)
        assert capture.operator.parameters

    return {
        "adam_step": _training_step(adam, torch.optim.Adam(adam.parameters(), lr=1e-3), task.criterion, batch),
        "forward_backward": forward_backward,
        "capture": captures,
    }


def _device(address: str) -> Subjects:
    """A TNGD step on a device, and its parts one by one."""
    task = mnist()
    inputs, targets = batch = _first_batch(task)
    # Open until the process ends: the daemon sees it go.
    session = connect(address).open_session()
    model, keeping, measured = task.build(0), task.build(0), task.build(0)
    capture = Capture(measured, task.criterion)
    loss = task.criterion(measured(inputs), targets)
    operator = capture.operator
    drive = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(measured.parameters()))])
    capture.close()
    # Starting from the drive keeps all steps alike.
    optimizer = TNGD(model, task.criterion, session, start="drive", **SETTINGS)
    keeper = TNGD(keeping, task.criterion, session, start="keep", **SETTINGS)
    return {
        "step": _training_step(model, optimizer, task.criterion, batch),
        "keep_step": _training_step(keeping, keeper, task.criterion, batch),
        "solve": lambda: session.solve(
            operator, drive, damping=SETTINGS["damping"], analog_time=SETTINGS["analog_time"], start="drive"
        ),
        **_halves(session, operator, drive),
    }


def _halves(session: Session, operator: Any, drive: Tensor) -> Subjects:
    """Upload until the program has taken hold; and a reading of a program whose Gram matrix has been made meanwhile."""

    def upload() -> None:
        session.program(operator, drive, damping=SETTINGS["damping"], start="drive")

    return {"upload": upload, "read": session.read}


def _training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, criterion: nn.Module, batch: tuple[Tensor, Tensor]
) -> Callable[[], object]:
    inputs, targets = batch

    def step() -> None:
        criterion(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _jacobians() -> Subjects:
    """The ways of `torch.func`."""
    task = mnist()
    inputs, _ = _first_batch(task)
    model = task.build(0)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def logits(parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        output: Tensor = functional_call(model, dict(parameters), (inputs,))
        return output

    def jacobian() -> dict[str, Tensor]:
        found: dict[str, Tensor] = vmap(jacrev(lambda p, x: logits(p, x[None])[0]), (None, 0))(parameters, inputs)
        return found

    def factor() -> Tensor:
        flat = torch.cat([block.flatten(2) for block in jacobian().values()], dim=2)
        p = torch.softmax(logits(parameters, inputs), dim=1)
        root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
        return torch.einsum("bij,bin->jbn", root / BATCH**0.5, flat).flatten(0, 1)

    return {
        "jacrev": jacobian,
        "factor_by_jacrev": factor,
        "jacrev_of_batch": lambda: jacrev(partial(logits, inputs=inputs))(parameters),
    }
