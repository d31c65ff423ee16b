"""One training step on the reference network: its parts, over gRPC and in this process, beside a step of Adam.

Ratios:
    step_exact_vs_adam: a whole TNGD step through a daemon (exact GGN), over a whole step of Adam.
    step_grpc_vs_inprocess: the same step through a daemon, over that on a device in this process.
    capture_speedup_vs_jacrev: `torch.func` vmap(jacrev) of the logits, over the capture of the curvature factor.
    upload_shrink_vs_jacobian: bytes of the float32 Jacobian of all logits, over bytes of tensors in one upload.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import medians
from host_client import TNGD, Session, connect
from host_client.curvature import Capture
from host_client.local_daemon import local_daemon
from host_client.tasks.mnist import mnist
from spu_link.program import Reading

BATCH = 64
SETTINGS = {"lr": 0.01, "damping": 0.01, "analog_time": 50.0}


def run(rounds: int = 60) -> dict[str, Any]:
    """Measure; seconds are medians over `rounds` rounds in which everything takes its turn."""
    task = mnist()
    batch = next(iter(task.batches(BATCH, seed=0)))
    criterion = nn.CrossEntropyLoss()
    with ExitStack() as stack:
        link: dict[str, Session] = {}
        for name, address in (("grpc", stack.enter_context(local_daemon(seed=0))), ("inprocess", "inproc:")):
            spu = stack.enter_context(connect(address))
            link[name] = stack.enter_context(spu.session())
        parts = {name: _Parts(task.build(0), session, batch, criterion) for name, session in link.items()}
        subjects: dict[str, Callable[[], object]] = {
            "adam_step": _adam_step(task.build(0), batch, criterion),
            "forward_backward": _forward_backward(task.build(0), batch, criterion),
        }
        for name, session in link.items():
            subjects[f"{name}_step"] = _tngd_step(task.build(0), session, batch, criterion)
            subjects[f"{name}_capture"] = parts[name].capture
            subjects[f"{name}_upload"] = parts[name].upload
            subjects[f"{name}_solve_and_read"] = parts[name].solve_and_read
        seconds = medians(subjects, rounds=rounds)
        slow = medians({"capture_by_jacrev": lambda: _jacobian(task.build(0), batch[0])}, rounds=3, warmup=1)
        upload_bytes = parts["grpc"].operator.nbytes + parts["grpc"].drive.nbytes
    parameters = sum(p.numel() for p in parts["grpc"].model.parameters())
    classes = parts["grpc"].model(batch[0]).shape[1]
    return {
        "ratios": {
            "step_exact_vs_adam": seconds["grpc_step"] / seconds["adam_step"],
            "step_grpc_vs_inprocess": seconds["grpc_step"] / seconds["inprocess_step"],
            "capture_speedup_vs_jacrev": slow["capture_by_jacrev"] / seconds["grpc_capture"],
            "upload_shrink_vs_jacobian": BATCH * classes * parameters * 4 / upload_bytes,
        },
        "seconds": seconds | slow,
        "upload_bytes": upload_bytes,
        "jacobian_bytes": BATCH * classes * parameters * 4,
        "settings": {**SETTINGS, "batch": BATCH, "parameters": parameters, "rounds": rounds},
        "threads": torch.get_num_threads(),
    }


class _Parts:
    """The parts of a TNGD step one by one, each on what the one before has left."""

    def __init__(self, model: nn.Module, session: Session, batch: tuple[Tensor, Tensor], criterion: nn.Module) -> None:
        self.model = model
        self._inputs, self._targets = batch
        self._criterion = criterion
        self._session = session
        self._capturing = Capture(model, criterion)
        self.capture()
        loss = criterion(model(self._inputs), self._targets)
        self.drive = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        self._reading: Reading

    def capture(self) -> None:
        """The forward pass with the capture in it."""
        self.model(self._inputs)
        self.operator = self._capturing.operator

    def upload(self) -> None:
        """Send a program and wait until it has taken hold."""
        self._session.program(self.operator, self.drive, damping=SETTINGS["damping"], start="drive")

    def solve_and_read(self) -> None:
        """Read the device, which first works out where its cells have come to."""
        self._reading = self._session.read()


def _forward_backward(model: nn.Module, batch: tuple[Tensor, Tensor], criterion: nn.Module) -> Callable[[], object]:
    inputs, targets = batch

    def run() -> None:
        model.zero_grad()
        criterion(model(inputs), targets).backward()

    return run


def _adam_step(model: nn.Module, batch: tuple[Tensor, Tensor], criterion: nn.Module) -> Callable[[], object]:
    inputs, targets = batch
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def run() -> None:
        criterion(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _tngd_step(
    model: nn.Module, session: Session, batch: tuple[Tensor, Tensor], criterion: nn.Module
) -> Callable[[], object]:
    inputs, targets = batch
    # Starting from the drive keeps every round alike, whatever the parts measured in between leave in the cells.
    optimizer = TNGD(model, criterion, session, start="drive", **SETTINGS)

    def run() -> None:
        criterion(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _jacobian(model: nn.Module, inputs: Tensor) -> Any:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def logits(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(model, parameters, sample[None])
        return output[0]

    return torch.func.vmap(torch.func.jacrev(logits), in_dims=(None, 0))(parameters, inputs)
