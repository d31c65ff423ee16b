"""What is known of one call of a function with trained parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from host_client.curvature.layouts import Layout

ToRows: TypeAlias = Callable[[Tensor], Tensor]
"""From cotangents of a function's output, shape (k, *output), to what is kept of them, shape (k, b, …)."""


class Operation(ABC):
    """One call of a function, with what its Jacobian rows with respect to its parameters are made of.

    Attributes:
        roles: the arguments that may be trained, by role.
    """

    roles: dict[str, Tensor]

    @abstractmethod
    def sample_dims(self, shape: Sequence[int], roles: Collection[str]) -> Sequence[int]:
        """The dimensions of the output, of this shape, along which samples may lie if these roles are trained."""

    @abstractmethod
    def rows(self, role: str, layout: Layout, dtype: torch.dtype) -> ToRows:
        """From cotangents (k, *output) to explicit rows (k, b, elements of the argument), both of this dtype."""


Rule: TypeAlias = Callable[..., Operation | None]
"""Called as the function is, after the shape of its output; None for a use that it does not cover."""

Rules: TypeAlias = dict[Any, Rule]
"""Rules by the function that torch dispatches."""
