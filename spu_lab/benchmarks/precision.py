"""Savings and costs of a precision on the wire: bytes of an upload, errors of the solution, encoding.

The curvature of the reference network (b = 64, exact GGN) is solved in each precision by an emulator in this process,
encoded and decoded as on its way through a daemon, and compared with the float64 operator's solution: ‖x' − x‖ / ‖x‖.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from host_client import Session, connect
from host_client.curvature import Capture
from spu_lab.benchmarks.targets import Target
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.task import Task
from spu_link import wire
from spu_link.operators import Operator
from spu_link.precision import NARROW, PRECISIONS, Precision
from spu_link.program import Program

BATCH = 64
STEPS = (0, 100, 600)
"""Steps of Adam before each measurement."""

SETTINGS = [(damping, analog_time) for damping in (0.01, 0.001) for analog_time in (50.0, 1e9)]
"""λ and t in τ; the longer one is t → ∞."""

RATIOS = {
    **{
        f"error_{precision}": "with λ = 0.01 and t = 50 τ, the defaults of training, on the network at the start."
        for precision in PRECISIONS
    },
    **{
        f"error_{precision}_trained": "the same after 600 steps of Adam, when the network is right almost everywhere "
        "and the curvature is badly conditioned."
        for precision in PRECISIONS
    },
    "upload_shrink_f32": "bytes of the float32 Jacobian of all logits, over bytes of tensors in one float32 upload.",
    "upload_shrink_16bit": "the same with the operator in 16 bits, whichever kind.",
}
TARGETS = {"upload_shrink_f32": Target("at least", 40), "upload_shrink_16bit": Target("at least", 80)}


def run() -> dict[str, Any]:
    """Measure; the errors are the same in every run."""
    task = mnist()
    states = {steps: _problem(task, steps) for steps in STEPS}
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        errors = {steps: _errors(session, *problem) for steps, problem in states.items()}
        uploads = {precision: _upload_bytes(session, *states[0], precision) for precision in PRECISIONS}
    operator, drive = states[0]
    jacobian = BATCH * task.outputs * operator.parameters * 4
    usual = _label(*SETTINGS[0])
    return {
        "ratios": {
            **{f"error_{precision}": errors[0][usual][precision] for precision in PRECISIONS},
            **{f"error_{precision}_trained": errors[STEPS[-1]][usual][precision] for precision in PRECISIONS},
            "upload_shrink_f32": jacobian / uploads["float32"],
            "upload_shrink_16bit": jacobian / max(uploads[precision] for precision in NARROW.values()),
        },
        "errors": {f"after {steps} steps": found for steps, found in errors.items()},
        "upload_bytes": uploads,
        "jacobian_bytes": jacobian,
        "encode_gigabytes_per_second": {p: _speed(partial(_encoded, operator, p), operator) for p in NARROW.values()},
        "decode_gigabytes_per_second": {p: _decode_speed(operator, drive, p) for p in NARROW.values()},
        "settings": {"batch": BATCH, "parameters": operator.parameters},
        "threads": torch.get_num_threads(),
    }


def _problem(task: Task, steps: int) -> tuple[Operator, Tensor]:
    """Curvature in float32 and gradient in float64 of one batch, after some training."""
    model = task.build(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for (inputs, targets), _ in zip(task.batches(BATCH, seed=1), range(steps), strict=False):
        optimizer.zero_grad()
        task.criterion(model(inputs), targets).backward()
        optimizer.step()
    return _curvature(model, task)


def _curvature(model: nn.Module, task: Task) -> tuple[Operator, Tensor]:
    inputs, targets = next(iter(task.batches(BATCH, seed=0)))
    capture = Capture(model, task.criterion)
    loss = task.criterion(model(inputs), targets)
    operator = capture.operator
    capture.close()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return operator, torch.cat([gradient.flatten() for gradient in gradients]).double()


def _errors(session: Session, operator: Operator, drive: Tensor) -> dict[str, dict[str, float]]:
    """Relative errors by setting and precision."""

    def solution(operator: Operator, precision: Precision | None, damping: float, analog_time: float) -> Tensor:
        options: dict[str, Any] = {"damping": damping, "analog_time": analog_time, "precision": precision}
        return session.solve(operator, drive, start="drive", **options).value

    exact = operator.map(Tensor.double)
    errors: dict[str, dict[str, float]] = {}
    for setting in SETTINGS:
        x = solution(exact, None, *setting)
        errors[_label(*setting)] = {
            precision: float((solution(operator, precision, *setting) - x).norm() / x.norm())
            for precision in PRECISIONS
        }
    return errors


def _label(damping: float, analog_time: float) -> str:
    return f"damping {damping:g}, {'limit' if analog_time > 1e6 else f'{analog_time:g} tau'}"


def _upload_bytes(session: Session, operator: Operator, drive: Tensor, precision: Precision) -> int:
    """Bytes of one upload as in training, with a float32 gradient."""
    before = session.uploaded_bytes
    session.program(operator, drive.float(), damping=0.01, precision=precision)
    return session.uploaded_bytes - before


def _encoded(operator: Operator, precision: Precision) -> bytearray:
    _, tensors = wire.operator_header(operator, precision)
    return bytearray().join(wire.byte_views(tensors))


def _decode_speed(operator: Operator, drive: Tensor, precision: Precision) -> float:
    header, tensors = wire.header_of(Program(operator, drive, start="drive", precision=precision))
    buffer = memoryview(bytearray().join(wire.byte_views(tensors)))
    return _speed(lambda: wire.program_from(header, buffer), operator)


def _speed(work: Callable[[], object], operator: Operator, repeats: int = 20) -> float:
    """GB of float32 operands a second, in the fastest of some repeats."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return operator.nbytes / min(times) / 1e9
