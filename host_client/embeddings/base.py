"""Base classes of embeddings: an operator's system as systems that a smaller device can hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from host_client.capacity import Cell
from spu_link.errors import InvalidProgram
from spu_link.operators import Operator
from spu_link.program import Program


@dataclass(frozen=True)
class Stage:
    """Problems that do not depend on each other, and what follows.

    Attributes:
        problems: programs for a device, (F + λI) x = b over as many unknowns as it has cells, in any order. Those under
            the same object are one after the other under the same operator; drives are float64 or of the dtype of the
            drive that the plan is for.
        then: maps their solutions, in the order of the problems, to the next stage, or g̃. A pure function: it may be
            called again with other solutions.
    """

    problems: Sequence[Program]
    then: Callable[[Sequence[Tensor]], Stage | Tensor]


@dataclass(frozen=True)
class Plan:
    """A plan whose last stage is being run.

    Attributes:
        stage: the last one.
        start: where the cells of a device with a cell for each parameter would have started, shape (N,).
        damping: λ.
    """

    stage: Stage
    start: Tensor
    damping: float

    def solution(self, solutions: Sequence[Tensor]) -> Tensor:
        """g̃ from the solutions of the last stage, shape (N,)."""
        value = self.stage.then(solutions)
        assert isinstance(value, Tensor)  # or it would not be the last one
        return value


class Embedded(ABC):
    """An operator over N parameters, made ready to be solved in parts. Made by `Embedding.embed`."""

    @property
    @abstractmethod
    def first(self) -> Operator:
        """The operator of the first problem, which may be sent ahead of everything else."""

    @abstractmethod
    def plan(self, program: Program) -> Stage:
        """The problems whose solutions give g̃ ≈ (F + λI)⁻¹ b, with the noise, precision and schedule of the program.

        Args:
            program: for a device with a cell for each parameter, λ > 0, start ``"drive"`` or a tensor.

        Raises:
            InvalidProgram: without damping.
        """


class Embedding(ABC):
    """A way to solve a system over N parameters on a device with fewer cells. Pure mathematics: it talks to no device.

    Attributes:
        name: how ``connect(embedding=…)`` calls it.
        stages: how many stages its plans have.
        single: whether its plans are always a single program, so that the device's state alone gives g̃.
        cell: what a cell stands for; ``"factor row"`` lets `TNGD` capture Kronecker factors.
    """

    name: ClassVar[str]
    stages: ClassVar[int] = 1
    single: ClassVar[bool] = False
    cell: ClassVar[Cell]

    @abstractmethod
    def cells(self, operator: Operator) -> int:
        """Cells that a device must have for an operator; asks for its shapes alone.

        Raises:
            InvalidProgram: for an operator that this embedding has no map for.
        """

    @abstractmethod
    def programs(self, operator: Operator) -> int:
        """Programs of a plan, which on a single device run one after the other; asks for shapes alone.

        Raises:
            InvalidProgram: for an operator that this embedding has no map for.
        """

    @abstractmethod
    def embed(self, operator: Operator) -> Embedded:
        """Do what has to be done once for an operator, whatever drives follow. Its tensors must stay as they are.

        Raises:
            InvalidProgram: for an operator that this embedding has no map for.
        """

    def state_after(self, start: Tensor, value: Tensor, relaxed: float) -> Tensor:
        """Return the state of the cells of a device with a cell for each parameter, or an estimate of it.

        The next program starts from there with start ``"keep"``: the cells themselves mean something else in it.

        Args:
            start: where they started, shape (N,).
            value: g̃ as read, shape (N,).
            relaxed: λ t of the reading.
        """
        return value

    def __repr__(self) -> str:
        """Class and options."""
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"{type(self).__name__}({options})"


def check_damped(name: str, damping: float) -> None:
    """Refuse a system without damping.

    Raises:
        InvalidProgram: when λ is not positive.
    """
    if not damping > 0.0:
        raise InvalidProgram(
            f"damping is {damping}; embedding {name!r} needs more than 0",
            field="damping",
            found=damping,
            expected="more than 0",
        )


def no_map(name: str, operator: object, expected: str) -> InvalidProgram:
    """The error for an operator that an embedding has no map for."""
    return InvalidProgram(
        f"embedding {name!r} has no map for {operator!r}; it takes {expected}",
        field="operator",
        found=repr(operator),
        expected=expected,
    )
