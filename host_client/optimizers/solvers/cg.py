"""The system by products with F alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Product: TypeAlias = Callable[[Tensor], Tensor]
"""F v for a vector v of shape (N,), in the dtype of v."""


class Solution(NamedTuple):
    """Where conjugate gradients stopped.

    Attributes:
        x: shape (N,), the dtype of the drive.
        iterations: how many there were.
        residual: ‖b − (F + λI) x‖ / ‖b‖ as the iteration has it, 0 for b = 0; in exact arithmetic it is the true one.
        products: how many products with F it took; one more than iterations with a start.
    """

    x: Tensor
    iterations: int
    residual: float
    products: int


def conjugate_gradients(
    product: Product, drive: Tensor, *, damping: float, tolerance: float, most: int, start: Tensor | None = None
) -> Solution:
    """Estimate of x = (F + λI)⁻¹ b by conjugate gradients (Hestenes and Stiefel, 1952), in the dtype of b.

    It stops at the first x with ‖b − (F + λI) x‖ ≤ tolerance · ‖b‖, after `most` iterations, or where a direction has
    no curvature left to divide by; whichever it was, the residual tells.

    Args:
        product: F v, such as the `curvature` of an operator; F symmetric positive semi-definite.
        drive: b, shape (N,).
        damping: λ ≥ 0.
        tolerance: relative residual that is small enough.
        most: most iterations, c in the paper (arXiv 2405.13817).
        start: where to start, shape (N,); None for 0. One farther away than 0, by its residual, is not taken.

    Raises:
        FloatingPointError: when a value of b or of a product is not finite.
    """
    x, residual, products = torch.zeros_like(drive), drive.clone(), 0
    square = whole = float(drive @ drive)
    if start is not None and whole > 0.0:
        begun = start.to(drive)
        remaining = drive - torch.add(product(begun), begun, alpha=damping)
        nearer = float(remaining @ remaining)
        products = 1
        if nearer < square:
            x, residual, square = begun.clone(), remaining, nearer
    direction = residual.clone()
    iterations = 0
    if not math.isfinite(whole):
        raise FloatingPointError("the drive holds values that are not finite, or far too large")
    while (relative := math.sqrt(square / whole) if whole > 0.0 else 0.0) > tolerance and iterations < most:
        image = torch.add(product(direction), direction, alpha=damping)
        products += 1
        bend = float(direction @ image)
        if not math.isfinite(bend):
            raise FloatingPointError("a product with the curvature holds values that are not finite, or far too large")
        if not bend > 0.0:
            break
        iterations += 1
        x.add_(direction, alpha=square / bend)
        residual.sub_(image, alpha=square / bend)
        before, square = square, float(residual @ residual)
        direction.mul_(square / before).add_(residual)
    return Solution(x, iterations, relative, products)
