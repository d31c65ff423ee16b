"""What an embedding is: an operator's system as systems that a smaller device can hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from torch import Tensor

from host_client.links.base import Cell
from spu_link.errors import CapacityExceeded, InvalidProgram
from spu_link.operators import Operator

Start: TypeAlias = Literal["drive"] | Tensor
"""Where cells start: at the drive, or at a tensor."""


@dataclass(frozen=True)
class Problem:
    """A program for a device: (F + λI) x = b over as many unknowns as it has cells.

    Attributes:
        operator: F, shape (n, n). Problems under the same object are one after the other under the same operator.
        drive: b, shape (n,), float64 or the dtype of the drive that the plan is for.
        damping: λ > 0.
        start: where the cells start.
    """

    operator: Operator
    drive: Tensor
    damping: float
    start: Start


@dataclass(frozen=True)
class Stage:
    """Problems that do not depend on each other, and what follows.

    Attributes:
        problems: to be solved, in any order.
        then: what becomes of their solutions, in the order of the problems: the next stage, or g̃. A pure function: it
            may be called again with other solutions.
    """

    problems: Sequence[Problem]
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
    def plan(self, drive: Tensor, *, damping: float, start: Start) -> Stage:
        """The problems whose solutions give g̃ ≈ (F + λI)⁻¹ b.

        Args:
            drive: b, shape (N,).
            damping: λ > 0.
            start: where the cells of a device with a cell for each parameter would start.

        Raises:
            InvalidProgram: without damping.
        """


class Embedding(ABC):
    """How a system over N parameters is solved by a device with fewer cells. Pure mathematics: it talks to no device.

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
        """What the cells of a device with a cell for each parameter would hold, or an estimate of it.

        The next program starts from there with start ``"keep"``: the cells themselves mean something else in it.

        Args:
            start: where they started, shape (N,).
            value: g̃ as read, shape (N,).
            relaxed: λ t of the reading.
        """
        return value

    def check(self, operator: Operator, cells: int) -> None:
        """Refuse an operator that is too large for a device.

        Args:
            operator: F.
            cells: how many the device has.

        Raises:
            CapacityExceeded: saying what is needed, and which embedding would do with the cells there are.
            InvalidProgram: for an operator that this embedding has no map for.
        """
        needed = self.cells(operator)
        if needed <= cells:
            return
        from host_client.embeddings.named import advice

        raise CapacityExceeded(
            f"embedding {self.name!r} needs {needed:,} cells for {operator!r}, and the device has {cells:,}; "
            f"{advice(operator, cells)}",
            field="cells",
            found=needed,
            expected=f"at most {cells}",
        )

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
