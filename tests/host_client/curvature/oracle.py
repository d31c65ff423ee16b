"""The curvature from a dense Jacobian and a dense Hessian of the loss, by plain autograd, one row at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from host_client.curvature import Capture
from host_client.curvature.losses.softmax import softmax_root
from spu_link.operators import FactorOperator
from tests.cases import Problem


def jacobian(outputs: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """J of the outputs' elements, in order: shape (outputs.numel(), N), in float64; keeps the graph.

    Row by row: torch.func.jacrev crashes on the CPU for grouped convolutions in float64.
    """
    rows = []
    for output in outputs.flatten():
        grads = torch.autograd.grad(output, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    return torch.stack(rows)


def hessian(criterion: nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
    """H of the criterion in its input, shape (outputs.numel(),) * 2, in float64."""
    z = outputs.detach().double()
    targets = targets.double() if targets.is_floating_point() else targets
    # Called past its hooks, which might be those of a capture.
    forward = copy.deepcopy(criterion).double().forward
    h = torch.autograd.functional.hessian(lambda z: forward(z, targets), z)
    return h.reshape(z.numel(), z.numel())


def factor(logits: Tensor, parameters: Sequence[Tensor], *, reduction: str = "mean") -> Tensor:
    """A = SᵀJ / √b of shape ((d − 1)·b, N) for the plain cross-entropy of logits (b, d), as it is captured."""
    columns = softmax_root(logits.detach().double())
    j = jacobian(logits, parameters).view(*logits.shape, -1)
    rows = torch.einsum("cbi,bin->cbn", columns, j).flatten(0, 1)
    return rows / len(logits) ** 0.5 if reduction == "mean" else rows


def curvature(problem: Problem, outputs: Tensor) -> Tensor:
    """F = Jᵀ H J, shape (N, N), in float64, at the forward pass that gave these outputs."""
    return _curvature(problem, outputs)[0]


def _curvature(problem: Problem, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """F = Jᵀ H J, and the rounding it may have: large where terms cancel, as for two classes with nearly equal rows."""
    j, h = jacobian(outputs, problem.trained), hessian(problem.criterion, outputs, problem.targets)
    return j.T @ h @ j, 8 * torch.finfo(torch.float64).eps * (j.T.abs() @ h.abs() @ j.abs())


def sample_gradients(problem: Problem, outputs: Tensor) -> Tensor:
    """Gradients of each sample's own loss, the sum over its positions: shape (b, N), in float64."""
    z = outputs.detach().double().requires_grad_()
    targets = problem.targets.double() if problem.targets.is_floating_point() else problem.targets
    criterion = copy.deepcopy(problem.criterion).double()
    criterion.reduction = "sum"
    (of_outputs,) = torch.autograd.grad(criterion.forward(z, targets), z)
    b = len(problem.inputs)
    j = jacobian(outputs, problem.trained).view(b, z.numel() // b, -1)
    return torch.einsum("bz,bzn->bn", of_outputs.reshape(b, -1), j)


def elementwise_scale(f: Tensor, sizes: Sequence[int], floor: float) -> Tensor:
    """Return the magnitude of the entries of F, block by block: an error is judged against the blocks it lies in.

    With s_p² the largest diagonal entry of parameter p, entries of the block (p, q) are at most s_p s_q. Parameters
    that have no influence at all (a key's bias in attention) have a scale of `floor` times the largest.
    """
    scales = torch.stack([block.max().clamp_min(0) for block in f.diagonal().split(list(sizes))]).sqrt()
    scales = scales.clamp_min(floor * scales.max()).clamp_min(1e-30)
    s = scales.repeat_interleave(torch.tensor(list(sizes)))
    return s[:, None] * s


def assert_same_curvature(
    found: Tensor, expected: Tensor, sizes: Sequence[int], tolerance: float, rounding: Tensor | float = 0.0
) -> None:
    """Equal to a tolerance relative to `elementwise_scale`, and the rounding of what is expected."""
    assert found.shape == expected.shape
    # What ought to vanish is rounding of what is largest, some 1e-16 or 1e-7 of it.
    floor = 1e-4 if tolerance < 1e-8 else 1e-2
    errors = ((found.double() - expected).abs() - rounding).clamp_min(0.0) / elementwise_scale(expected, sizes, floor)
    worst = int(errors.argmax())
    assert errors.max() <= tolerance, (
        f"entry {divmod(worst, len(expected))} is {found.flatten()[worst]}, not {expected.flatten()[worst]}: "
        f"off by {errors.max():.1e} of its block's scale"
    )


def assert_captured(operator: FactorOperator, problem: Problem, outputs: Tensor, tolerance: float = 1e-10) -> None:
    """Assert that AᵀA is the curvature of a problem at the forward pass that gave these outputs."""
    a = operator.dense()
    expected, rounding = _curvature(problem, outputs)
    assert_same_curvature(a.T @ a, expected, problem.sizes, tolerance, rounding)


def assert_exact(capture: Capture, problem: Problem, tolerance: float = 1e-10) -> None:
    """Assert that a training pass is captured with its curvature."""
    outputs = problem.outputs()
    problem.criterion(outputs, problem.targets)
    assert_captured(capture.operator, problem, outputs, tolerance)
