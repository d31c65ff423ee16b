"""The motion of the cells under one program: exact, over any duration.

dx = −((F + λI) x − b) ds + √(2κ₀) dW is linear, so after any duration Δ the state and its integral are sums of scalar
functions of F + λI (see `functions`) times the start, the drive and two vectors of standard normal numbers. There are
no time steps: cost and accuracy do not depend on Δ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeAlias

import torch
from torch import Tensor

from spu_link.operators import Operator
from spu_server.dynamics.eigen import Table
from spu_server.dynamics.functions import INTEGRAL, STATE

NoiseSource: TypeAlias = Callable[[], Tensor]
"""Draws one vector of N independent standard normal numbers, float64."""


class Step(NamedTuple):
    """Result of a step.

    Attributes:
        state: x after it, shape (N,), float64.
        integral: ∫ x ds over it, shape (N,), float64; None if not asked for.
    """

    state: Tensor
    integral: Tensor | None


@dataclass(frozen=True)
class Progress:
    """Progress of the work under one operator.

    Attributes:
        steps: Lanczos steps taken.
        decomposed: whether there are eigenvectors.
        image: A times the cells' state, for a factor A of the operator; shape (m,), float64; None where not known.
    """

    steps: int
    decomposed: bool
    image: Tensor | None = None


class Motion(ABC):
    """A law of motion under one program.

    Attributes:
        drive: b, shape (N,), float64.
    """

    drive: Tensor

    @abstractmethod
    def under(self, drive: Tensor, *, damping: float, noise: float) -> Motion:
        """Return the motion with the same operator under another drive, damping and noise.

        What is computed of the operator, by either of the two, serves both.
        """

    @abstractmethod
    def prepare(self) -> None:
        """Do now what the first step would do once for all steps."""

    @abstractmethod
    def step(self, state: Tensor | None, duration: float, normal: NoiseSource, *, integral: bool = False) -> Step:
        """Move over `duration`.

        Args:
            state: x before the step, shape (N,), float64; None for all cells discharged.
            duration: Δ ≥ 0, in τ.
            normal: source of the noise.
            integral: whether ∫ x ds is wanted as well.
        """


class Transition(Motion):
    """The law of motion under F + λI, symmetric. Its steps can be taken ahead of time, and its progress can be saved.

    Args:
        operator: F over N cells.
        drive: b, shape (N,), float64.
        damping: λ ≥ 0.
        noise: κ₀ ≥ 0.
    """

    def __init__(self, operator: Operator, drive: Tensor, *, damping: float, noise: float) -> None:
        self.operator = operator
        self.drive = drive
        self.damping = damping
        self.noise = noise

    @abstractmethod
    def progress(self, state: Tensor | None) -> Progress:
        """Return what later steps from `state` depend on, to the bit, in addition to the program and the state."""

    @abstractmethod
    def resume(self, state: Tensor | None, progress: Progress) -> None:
        """Continue from `state` with the progress of another transition under the same program.

        Raises:
            ValueError: when it cannot have been made under this program.
        """

    @abstractmethod
    def fork(self) -> Self:
        """Return a copy for steps ahead of time: no bit of this transition changes until it adopts the copy."""

    @abstractmethod
    def adopt(self, other: Self) -> None:
        """Take over the progress of a fork, as if its steps had been taken with this transition."""

    def step(self, state: Tensor | None, duration: float, normal: NoiseSource, *, integral: bool = False) -> Step:
        """Move over `duration`.

        `normal` is called once, or twice with `integral`, if and only if κ₀ > 0 and Δ > 0. A start at the drive costs
        less if `state` is the very tensor `drive`.
        """
        if duration == 0.0:
            zeros = torch.zeros_like(self.drive)
            return Step(zeros if state is None else state, torch.zeros_like(zeros) if integral else None)
        inputs = [state, self.drive]
        if self.noise > 0.0:
            inputs += [normal() * self.noise**0.5 for _ in range(2 if integral else 1)]
        outputs = self._outputs([STATE, INTEGRAL] if integral else [STATE], inputs, duration)
        return Step(outputs[0], outputs[1] if integral else None)

    @abstractmethod
    def _outputs(self, table: Table, inputs: Sequence[Tensor | None], duration: float) -> Sequence[Tensor]:
        """Return the sums Σ_j h_ij(F + λI) v_j, each of shape (N,), for the functions h of the table.

        The inputs v are x (None for zeros), b and, with noise, √κ₀ z₁ and √κ₀ z₂; those that are missing are zero.
        """
