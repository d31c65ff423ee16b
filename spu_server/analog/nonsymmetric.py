"""Motion of cells whose drift matrix is not symmetric: dx = −(M x − b) ds + √(2κ₀) dW with M = BᵀA + λI.

A and B are two factors of one shape, held by separate arrays; what differs between the arrays makes M unsymmetric, and
may give it eigenvalues with a negative real part. The law stays exact: an unstable board's state grows as e^{|f|Δ}, and
when it has grown beyond all numbers the step raises `OverflowError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache, partial

import torch
from torch import Tensor

from spu_link.errors import mismatch
from spu_link.operators import FactorOperator, LayerRows
from spu_link.operators.base import BlockFactor
from spu_link.operators.stack import stack
from spu_server.analog.arnoldi import arnoldi
from spu_server.analog.doubling import DenseLaw, FactorLaw
from spu_server.dynamics.functions import at, decay, diffusion, integrated_response, own, response, shared
from spu_server.dynamics.load import CPU, SMALL_PROBLEM
from spu_server.dynamics.transition import Motion, NoiseSource, Step

SMALL = 128
"""Maximum number of rows for which the law itself costs no more than an Arnoldi process."""

LAWS = 4
"""Durations whose laws are kept: a run reads at a few of them, again and again."""


class DenseDrift(Motion):
    """Motion under M + λI with M given in full.

    A step costs products of N × N matrices, about two for each doubling of the time; `step` is as in `Transition`, but
    that `normal` is called twice with `integral`, and once without, only when κ₀ > 0.

    Args:
        matrix: M, shape (N, N), any real matrix.
        drive: b, shape (N,), float64.
        damping: λ.
        noise: κ₀ ≥ 0.
    """

    def __init__(self, matrix: Tensor, drive: Tensor, *, damping: float, noise: float) -> None:
        self.matrix = matrix.to(torch.float64)
        self.drive = drive
        self.damping = damping
        self.noise = noise
        self._law = lru_cache(maxsize=LAWS)(self._new_law)

    def under(self, drive: Tensor, *, damping: float, noise: float) -> DenseDrift:
        """The motion with the same M under another drive; laws serve on where damping and noise allow."""
        other = DenseDrift(self.matrix, drive, damping=damping, noise=noise)
        if _same_law(self, other):
            other._law = self._law
        return other

    def prepare(self) -> None:
        """Nothing can be done before the duration is known."""

    def step(self, state: Tensor | None, duration: float, normal: NoiseSource, *, integral: bool = False) -> Step:
        """Move over `duration`.

        Raises:
            OverflowError: when an unstable M has driven the state beyond all numbers.
        """
        if duration == 0.0:
            return _rest(state, self.drive, integral)
        law = self._law(duration, integral)
        x = torch.zeros_like(self.drive) if state is None else state
        moved = law.mean.decay @ x + law.mean.response @ self.drive
        total = None
        if law.mean.integrated is not None:
            total = law.mean.response @ x + law.mean.integrated @ self.drive
        if law.root is not None:
            drawn = self.noise**0.5 * (law.root @ torch.cat([normal() for _ in range(2 if integral else 1)]))
            moved = moved + drawn[: len(x)]
            total = None if total is None else total + drawn[len(x) :]
        return _check_finite(Step(moved, total), duration)

    def _new_law(self, duration: float, integral: bool) -> DenseLaw:
        damped = self.matrix + self.damping * torch.eye(len(self.matrix), dtype=torch.float64)
        return DenseLaw(damped, duration, noise=self.noise > 0.0, integral=integral)


class FactorDrift(Motion):
    """Motion under M = BᵀA + λI, in sample space: nothing of size N × N, and A, Aᵀ and Bᵀ only through products.

    Args:
        forward: A, shape (m, N): the array that the cells are seen through.
        backward: B, of the same shape and form: the array that drives the cells.
        drive: b, shape (N,), float64.
        damping: λ ≥ 0.
        noise: κ₀ ≥ 0.

    Raises:
        InvalidProgram: when the factors do not have one shape.
    """

    def __init__(
        self, forward: FactorOperator, backward: FactorOperator, drive: Tensor, *, damping: float, noise: float
    ) -> None:
        if forward.shape != backward.shape:
            raise mismatch("backward", backward.shape, f"the shape {forward.shape} of the forward array")
        self.forward, self.backward = forward, backward
        self.drive = drive
        self.damping = damping
        self.noise = noise
        self._grams = cache(partial(grams_of, forward, backward))
        self._law = lru_cache(maxsize=LAWS)(self._new_law)

    def under(self, drive: Tensor, *, damping: float, noise: float) -> FactorDrift:
        """The motion with the same arrays under another drive; what is known of them serves on."""
        other = FactorDrift(self.forward, self.backward, drive, damping=damping, noise=noise)
        other._grams = self._grams
        if _same_law(self, other):
            other._law = self._law
        return other

    def prepare(self) -> None:
        """Compute A Aᵀ and A Bᵀ."""
        self._grams()

    def step(self, state: Tensor | None, duration: float, normal: NoiseSource, *, integral: bool = False) -> Step:
        """Move over `duration`, as in `Transition`.

        `normal` is called twice as often: what noise makes of A x is drawn besides.

        Raises:
            OverflowError: when an unstable M has driven the state beyond all numbers.
        """
        if duration == 0.0:
            return _rest(state, self.drive, integral)
        x = torch.zeros_like(self.drive) if state is None else state
        if self.noise == 0.0 and not integral and self.forward.shape[0] > SMALL:
            moved = self._by_arnoldi(x, duration)
            if moved is not None:
                return _check_finite(Step(moved, None), duration)
        law = self._law(duration, integral)
        drawn = [self.noise**0.5 * normal() for _ in range(2 if integral else 1)] if law.noise is not None else []
        images = self.forward.apply(torch.stack([x, self.drive, *drawn])).cpu()
        mean = law.mean
        weights = [mean.decay @ images[0] + mean.response @ images[1]]
        moved = self._alone(x, (decay, response, diffusion), drawn[:1], duration)
        total = None
        if mean.integrated is not None:
            weights.append(mean.response @ images[0] + mean.integrated @ images[1])
            total = self._alone(x, (response, integrated_response, shared, own), drawn, duration)
        if law.noise is not None:
            m = len(images[0])
            rest = torch.cat([normal().cpu()[:m] for _ in drawn])
            added = law.noise.follows @ images[2:].flatten() + self.noise**0.5 * (law.noise.root @ rest)
            weights = [weight + part for weight, part in zip(weights, added.split(m), strict=True)]
        pulled = self.backward.adjoint(torch.stack(weights).to(x.device))
        return _check_finite(Step(moved + pulled[0], None if total is None else total + pulled[1]), duration)

    def _by_arnoldi(self, x: Tensor, duration: float) -> Tensor | None:
        """The state without noise; None if the process does not converge.

        Start and drive share one process, as in the symmetric case: x' = x + φ₁(M)(b − M x) with φ₁(M) =
        φ₁(λ) + Bᵀ k(C) A, so that x' = e^{−λΔ} x + φ₁(λ) b + Bᵀ [k(C) q − φ₁(λ) A x], q = A (b − M x).
        """
        _, cross = self._grams()
        images = self.forward.apply(torch.stack([x, self.drive])).cpu()
        alone = self._alone(x, (decay, response), [], duration)
        left, weight = at(decay, self.damping, duration), at(response, self.damping, duration)
        residual = images[1] - self.damping * images[0] - cross @ images[0]
        image, norm = left * images[0] + weight * images[1], float(alone @ alone)

        def square(product: Tensor) -> float:
            w = product - weight * images[0]
            return norm + 2.0 * float(image @ w) + float(w @ (cross @ w))

        def slopes(small: Tensor) -> Tensor:
            return FactorLaw(small, None, damping=self.damping, duration=duration, integral=False).mean.response

        product = arnoldi(cross, residual, slopes, square=square, max_steps=len(residual) // 3)
        if product is None:
            return None
        return alone + self.backward.adjoint((product - weight * images[0])[None].to(x.device))[0]

    def _alone(self, x: Tensor, functions: Sequence[object], drawn: Sequence[Tensor], duration: float) -> Tensor:
        """Return the result of the cells with the damping alone."""
        inputs = [x, self.drive, *drawn]
        result = torch.zeros_like(x)
        for function, vector in zip(functions, inputs, strict=False):
            result.add_(vector, alpha=at(function, self.damping, duration))  # type: ignore[arg-type]
        return result

    def _new_law(self, duration: float, integral: bool) -> FactorLaw:
        gram, cross = self._grams()
        return FactorLaw(
            cross, gram if self.noise > 0.0 else None, damping=self.damping, duration=duration, integral=integral
        )


def drift_of(
    forward: FactorOperator,
    backward: FactorOperator,
    drive: Tensor,
    *,
    damping: float,
    noise: float,
    compute: torch.device = CPU,
) -> DenseDrift | FactorDrift:
    """The motion under BᵀA + λI, with the promotions of `spu_server.dynamics.transition_of`; in full where m ≥ N."""
    m, n = forward.shape
    if m >= n:
        matrix = torch.zeros(n, n, dtype=torch.float64)
        for b, a in zip(backward.dense_chunks(), forward.dense_chunks(), strict=True):
            matrix.addmm_(b.T, a)
        return DenseDrift(matrix, drive.to(torch.float64, copy=True), damping=damping, noise=noise)
    dtype = torch.float64 if m * n <= SMALL_PROBLEM else None
    forward, backward = (o.map(lambda t: t.to(device=compute, dtype=dtype)) for o in (forward, backward))
    return FactorDrift(forward, backward, drive.to(compute, torch.float64, copy=True), damping=damping, noise=noise)


def grams_of(forward: FactorOperator, backward: FactorOperator) -> tuple[Tensor, Tensor]:
    """A Aᵀ and A Bᵀ, shape (m, m), float64: two blocks of the Gram matrix of A and B under each other."""
    m = forward.shape[0]
    gram = torch.zeros(m, m, dtype=torch.float64)
    cross = torch.zeros(m, m, dtype=torch.float64)
    for a, b in zip(layers_of(forward), layers_of(backward), strict=True):
        c = _columns(a)
        both = stack([LayerRows([a]), LayerRows([b])], [1.0, 1.0], [c, c]).gram().view(c, 2, m // c, c, 2, m // c)
        gram += both[:, 0, :, :, 0].reshape(m, m)
        cross += both[:, 0, :, :, 1].reshape(m, m)
    return gram, cross


def layers_of(factor: FactorOperator) -> tuple[BlockFactor, ...]:
    """The blocks of a factor."""
    if isinstance(factor, LayerRows):
        return factor.layers
    if not isinstance(factor, BlockFactor):
        raise mismatch("operator", type(factor).__name__, "a factor of one block or of several layers")
    return (factor,)


def _columns(factor: BlockFactor) -> int:
    """c, the number of rows a sample; explicit rows have no samples, and count as one."""
    cotangents = factor.tensors.get("cotangent")
    return 1 if cotangents is None else len(cotangents)


def _same_law(one: DenseDrift | FactorDrift, other: DenseDrift | FactorDrift) -> bool:
    return one.damping == other.damping and (one.noise > 0.0) == (other.noise > 0.0)


def _rest(state: Tensor | None, drive: Tensor, integral: bool) -> Step:
    zeros = torch.zeros_like(drive)
    return Step(zeros if state is None else state, zeros.clone() if integral else None)


def _check_finite(step: Step, duration: float) -> Step:
    if not torch.isfinite(step.state).all():
        raise OverflowError(
            f"the cells have grown beyond all numbers within {duration:g} τ: the drift matrix is unstable. Its arrays "
            "for A and Aᵀ differ too much for this damping; more damping, more bits or less mismatch would do"
        )
    return step
