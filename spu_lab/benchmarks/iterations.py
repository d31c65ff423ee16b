"""The digital ways to solve (F + λI) x = b with products F v alone: what TNGD replaces."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call, jvp, vjp

from host_client.solvers.cg import ConjugateGradients, Product
from spu_lab.benchmarks.networks import Network


def euler_maruyama(
    product: Product, drive: Tensor, *, damping: float, noise: float, delta: float, steps: int
) -> Tensor:
    """State after `steps` steps of δt = `delta` from x = b, as the paper simulates the device (arXiv 2405.13817).

    x ← x − δt ((F + λI) x − b) + √(2 κ₀ δt) z, which is stable for δt < 2 / (λ_max(F) + λ).

    Args:
        product: F v.
        drive: b, shape (N,).
        damping: λ.
        noise: κ₀; with 0 no numbers are drawn.
        delta: δt, in τ.
        steps: how many.
    """
    x = drive.clone()
    for _ in range(steps):
        change = drive - damping * x - product(x)
        x.add_(change, alpha=delta)
        if noise > 0.0:
            x.add_(torch.randn_like(x), alpha=(2.0 * noise * delta) ** 0.5)
    return x


def to_residual(
    product: Product, drive: Tensor, *, damping: float, tolerance: float, iterations: int = 2000
) -> tuple[Tensor, int]:
    """Solution of NGD-CG with ‖(F + λI) x − b‖ ≤ tolerance · ‖b‖, and the number of iterations (products with F).

    Raises:
        ArithmeticError: when `iterations` are not enough.
    """
    x, info = ConjugateGradients(iterations, tolerance)(product, drive, damping)
    if not info["converged"]:
        raise ArithmeticError(
            f"no convergence to {tolerance:.3g} in {iterations} iterations; the residual is {info['residual']:.3g}"
        )
    return x, info["iterations"]


def model_product(network: Network) -> Product:
    """F v by the paper's three model calls: a forward-mode pass, a product with the loss' Hessian, a backward pass."""
    parameters = {name: p.detach() for name, p in network.model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def logits(parameters: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(network.model, dict(parameters), (network.inputs,))
        return output

    def product(v: Tensor) -> Tensor:
        parts = {name: part.view_as(p) for part, (name, p) in zip(v.split(sizes), parameters.items(), strict=True)}
        outputs, change = jvp(logits, (parameters,), (parts,))[:2]
        pull = vjp(logits, parameters)[1]
        (gradient,) = pull(_hessian(outputs, change))
        return torch.cat([part.flatten() for part in gradient.values()])

    return product


def kept_graph_product(network: Network) -> Product:
    """The same with the graph of one forward pass kept, so that no product repeats that pass.

    The backward pass is linear in its cotangents, so J v is the derivative of (Jᵀ u)·v with respect to u.
    """
    parameters = network.trained()
    sizes = [p.numel() for p in parameters]
    outputs = network.model(network.inputs)
    cotangents = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, parameters, cotangents, create_graph=True)

    def product(v: Tensor) -> Tensor:
        parts = [part.view_as(p) for part, p in zip(v.split(sizes), parameters, strict=True)]
        (change,) = torch.autograd.grad(pulled, cotangents, parts, retain_graph=True)
        backward = torch.autograd.grad(outputs, parameters, _hessian(outputs.detach(), change), retain_graph=True)
        return torch.cat([part.flatten() for part in backward])

    return product


def _hessian(logits: Tensor, change: Tensor) -> Tensor:
    """The mean cross-entropy's Hessian in the logits, times `change`: (p ∘ u − p (p·u)) / b."""
    p = torch.softmax(logits, dim=1)
    scaled = p * change
    return (scaled - p * scaled.sum(1, keepdim=True)) / len(logits)
