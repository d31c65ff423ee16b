"""Thermodynamic K-FAC: two small systems a layer, over its inputs and over its outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from host_client.curvature.kronecker.operator import KroneckerFactors, LayerFactors
from host_client.embeddings.base import Embedded, Embedding, Stage, check_damped, no_map
from spu_link.operators import Dense, Operator
from spu_link.program import Program


class Kronecker(Embedding):
    """For each layer, with F's block approximated by B ⊗ A: X = (B + √λ/π I)⁻¹ V (A + π√λ I)⁻¹, V the layer's drive.

    A, of shape (n, n), is the second moment of the layer's inputs, B, of shape (d, d), that of the cotangents of its
    outputs, and π² = (tr A / n) / (tr B / d) (Martens and Grosse, arXiv 1503.05671, section 6.3). The rows of V are
    solved against A first, then the columns of what comes against B. Where there are more of them than unknowns, the
    inverse is read instead, column by column from unit drives. The cells needed are the rows of the largest factor.

    Approximations, also as t → ∞: the Kronecker product itself, and the damping, whose product has, in addition to λI,
    the terms π√λ (B ⊗ I) and √λ/π (I ⊗ A).
    """

    name = "kronecker"
    stages = 2
    cell = "factor row"

    def cells(self, operator: Operator) -> int:
        """Rows of the largest factor."""
        return max(max(len(layer.inputs), len(layer.cotangents)) for layer in self._factors(operator).blocks)

    def programs(self, operator: Operator) -> int:
        """In each of two stages, for each layer, as many as its smaller factor has rows."""
        return 2 * sum(min(len(layer.inputs), len(layer.cotangents)) for layer in self._factors(operator).blocks)

    def embed(self, operator: Operator) -> Embedded:
        """Make a device's operator of each factor."""
        return _InFactors(self._factors(operator))

    def _factors(self, operator: Operator) -> KroneckerFactors:
        if not isinstance(operator, KroneckerFactors):
            raise no_map(self.name, operator, "Kronecker factors, as KroneckerCapture gives them")
        return operator


def balance(layer: LayerFactors) -> float:
    """π of a layer, which shares the damping between its factors; 1 where a factor is zero."""
    inner, outer = (float(factor.double().diagonal().mean()) for factor in (layer.inputs, layer.cotangents))
    return math.sqrt(inner / outer) if inner > 0.0 and outer > 0.0 else 1.0


@dataclass(frozen=True)
class _Side:
    """One factor of a layer as a device's operator."""

    operator: Dense
    scale: float  # of √λ

    def problems(self, rows: Tensor, starts: Tensor | None, program: Program) -> list[Program]:
        """Problems whose solutions give every row of `rows`, shape (k, n), times the damped factor's inverse."""
        n = self.operator.parameters
        if len(rows) > n:
            rows, starts = torch.eye(n, dtype=torch.float64), None
        damping = self.scale * math.sqrt(program.damping)
        return [
            replace(program, operator=self.operator, drive=row, damping=damping, start=start)
            for row, start in zip(rows, ["drive"] * len(rows) if starts is None else starts, strict=True)
        ]

    def solutions(self, rows: Tensor, found: Sequence[Tensor]) -> Tensor:
        """The rows that the solutions of `problems` give, shape (k, n)."""
        read = torch.stack(list(found)).double()
        return rows @ read if len(rows) > self.operator.parameters else read

    def product(self, rows: Tensor, damping: float) -> Tensor:
        """Every row times the damped factor."""
        return rows @ self.operator.matrix.double() + self.scale * math.sqrt(damping) * rows


class _InFactors(Embedded):
    def __init__(self, factors: KroneckerFactors) -> None:
        self._factors = factors
        pis = [balance(layer) for layer in factors.blocks]
        self._inputs = [_Side(_dense(b.inputs), pi) for b, pi in zip(factors.blocks, pis, strict=True)]
        self._outputs = [_Side(_dense(b.cotangents), 1.0 / pi) for b, pi in zip(factors.blocks, pis, strict=True)]

    @property
    def first(self) -> Operator:
        return self._inputs[0].operator

    def plan(self, program: Program) -> Stage:
        check_damped(Kronecker.name, program.damping)
        drives = self._factors.matrices(program.drive.double().cpu())
        starts: list[Tensor | None] = [None] * len(drives)
        if isinstance(program.start, Tensor):
            starts = list(self._factors.matrices(program.start.double().cpu()))

        def last(columns: Sequence[Tensor]) -> Tensor:
            return self._factors.vector([x.T for x in columns], program.drive)

        def then(rows: Sequence[Tensor]) -> Stage:
            ends = [None if x0 is None else x0.T for x0 in starts]
            return _stage(self._outputs, [y.T.contiguous() for y in rows], ends, program, last)

        # X = (B + …)⁻¹ Y, so that Y starts from (B + …) X₀.
        sides = zip(self._outputs, starts, strict=True)
        images = [None if x0 is None else side.product(x0.T, program.damping).T for side, x0 in sides]
        return _stage(self._inputs, drives, images, program, then)


def _stage(
    sides: Sequence[_Side],
    rows: Sequence[Tensor],
    starts: Sequence[Tensor | None],
    program: Program,
    then: Callable[[Sequence[Tensor]], Stage | Tensor],
) -> Stage:
    """All layers' systems against one side."""
    problems = [side.problems(r, x0, program) for side, r, x0 in zip(sides, rows, starts, strict=True)]

    def collected(solutions: Sequence[Tensor]) -> Stage | Tensor:
        left = iter(solutions)
        found = [[next(left) for _ in own] for own in problems]
        return then([side.solutions(r, own) for side, r, own in zip(sides, rows, found, strict=True)])

    return Stage([problem for own in problems for problem in own], collected)


def _dense(factor: Tensor) -> Dense:
    """A factor as an operator, symmetric beyond rounding. In its own dtype, by which its definiteness is judged."""
    return Dense(((factor + factor.T) / 2).cpu())
