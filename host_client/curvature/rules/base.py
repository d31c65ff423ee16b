"""The rule of a function: the position of the samples in its arguments, and the Jacobian rows of its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from host_client.curvature.axis import Axis
from host_client.curvature.graph import Call

ToRows: TypeAlias = Callable[[Tensor], Tensor]
"""From cotangents of a function's output, shape (k, *output), to what is kept of them, shape (k, count, …)."""

Axes: TypeAlias = Sequence[Axis | None]
"""The position of the samples in each of several tensors; None where it is not known."""


class Operation(ABC):
    """One call of a function, with what its Jacobian rows with respect to some arguments are made of.

    Attributes:
        roles: role of each differentiable argument that has rows, by its number.
        shape: of the output.
    """

    roles: dict[int, str]
    shape: torch.Size

    @abstractmethod
    def rows(self, role: str, axis: Axis, dtype: torch.dtype) -> ToRows:
        """From cotangents (k, *output) to explicit rows (k, count, elements of the argument), both of this dtype."""


class Rule:
    """The rule of one function of torch, by the name of its node in the autograd graph.

    Whatever a rule does not say is found out by calling the function's derivative, at a higher cost.
    """

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Return where the samples lie in each differentiable argument; None for one in which they do not lie apart.

        The cotangent of an argument has an axis if each of its entries depends on the cotangents of one sample only:
        for every value that the arguments may have.

        Args:
            call: the call.
            axes: of its outputs; None for one that nothing has used.

        Returns:
            One entry an argument; None in place of all where nothing is known.
        """
        return None

    def operation(self, call: Call) -> Operation | None:
        """Return what the rows of arguments without samples are made of; None where no form is known."""
        return None

    def differentiate(self, call: Call, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Return the cotangents of all arguments; an approximation stands here, and nowhere else."""
        return call.differentiate(cotangents)

    def approximation(self, call: Call) -> str | None:
        """Return what `differentiate` leaves out of the derivative, in words; None where it is exact."""
        return None

    def carry(self, call: Call, cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        """Return the cotangents of some arguments, as `Call.differentiate`; those not wanted may be None."""
        return self.differentiate(call, cotangents)


def with_one(axes: Axes) -> Axis | None:
    """Return the axis of the first output, for functions whose other outputs nobody differentiates."""
    return axes[0] if len(axes) == 1 or all(axis is None for axis in axes[1:]) else None
