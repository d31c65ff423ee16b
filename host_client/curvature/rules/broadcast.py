"""Parameters that scale or shift: each of their elements meets a sample at many positions, or at one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from host_client.curvature.layouts import Layout
from host_client.curvature.rules.base import Operation, Rules, ToRows


@dataclass(frozen=True)
class Term:
    """y = … + scale · factor ⊙ θ, with θ broadcast to y.

    Attributes:
        aligned: shape of θ with as many dimensions as y; 1 where it is broadcast.
        factor: gives the factor, which broadcasts to y, in a dtype; None for 1.
        scale: a number.
    """

    aligned: tuple[int, ...]
    factor: Callable[[torch.dtype], Tensor] | None = None
    scale: float = 1.0


@dataclass
class Broadcast(Operation):
    """A function that is linear in parameters that broadcast.

    Attributes:
        terms: by role.
        shape: of the output.
    """

    roles: dict[str, Tensor]
    terms: dict[str, Term]
    shape: torch.Size

    def sample_dims(self, shape: Sequence[int], roles: Collection[str]) -> Sequence[int]:
        """Those in which every trained parameter is broadcast."""
        return [d for d in range(len(shape)) if all(self.terms[role].aligned[d] == 1 for role in roles)]

    def rows(self, role: str, layout: Layout, dtype: torch.dtype) -> ToRows:
        """The cotangents times the factor, summed where the parameter is broadcast."""
        term = self.terms[role]
        factor = None if term.factor is None else layout.by_sample(term.factor(dtype).expand(self.shape), 0)
        summed = [d + 2 for d, extent in enumerate(layout.rest(term.aligned)) if extent == 1]

        def rows(cotangents: Tensor) -> Tensor:
            delta = layout.by_sample(cotangents, 1)
            if factor is not None:
                delta = delta * factor
            if summed:
                delta = delta.sum(summed)
            return (delta if term.scale == 1.0 else delta * term.scale).reshape(*delta.shape[:2], -1)

        return rows


def aligned(shape: Sequence[int], dims: int) -> tuple[int, ...]:
    """A shape with ones before it, for `dims` dimensions."""
    return (1,) * (dims - len(shape)) + tuple(shape)


def _sum(shape: torch.Size, input: Tensor | float, other: Tensor | float, *, alpha: float = 1) -> Operation | None:
    return _terms(shape, input, other, 1.0, float(alpha))


def _difference(
    shape: torch.Size, input: Tensor | float, other: Tensor | float, *, alpha: float = 1
) -> Operation | None:
    return _terms(shape, input, other, 1.0, -float(alpha))


def _reversed_difference(
    shape: torch.Size, input: Tensor | float, other: Tensor | float, *, alpha: float = 1
) -> Operation | None:
    return _terms(shape, input, other, -float(alpha), 1.0)


def _terms(
    shape: torch.Size, input: Tensor | float, other: Tensor | float, of_input: float, of_other: float
) -> Operation | None:
    if not (isinstance(input, Tensor) and isinstance(other, Tensor)):
        return None
    return Broadcast(
        {"input": input, "other": other},
        {
            "input": Term(aligned(input.shape, len(shape)), scale=of_input),
            "other": Term(aligned(other.shape, len(shape)), scale=of_other),
        },
        shape,
    )


def _product(shape: torch.Size, input: Tensor | float, other: Tensor | float) -> Operation | None:
    if not (isinstance(input, Tensor) and isinstance(other, Tensor)):
        return None
    first, second = input.detach(), other.detach()
    return Broadcast(
        {"input": input, "other": other},
        {
            "input": Term(aligned(first.shape, len(shape)), second.to),
            "other": Term(aligned(second.shape, len(shape)), first.to),
        },
        shape,
    )


def _expanded(shape: torch.Size, input: Tensor, *_: object, **__: object) -> Operation:
    return Broadcast({"input": input}, {"input": Term(aligned(input.shape, len(shape)))}, shape)


RULES: Rules = {
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__), _sum),
    **dict.fromkeys((torch.Tensor.__radd__, torch.Tensor.__iadd__), _sum),
    **dict.fromkeys((torch.sub, torch.Tensor.sub, torch.Tensor.sub_, torch.Tensor.__sub__), _difference),
    **dict.fromkeys((torch.subtract, torch.Tensor.subtract, torch.Tensor.__isub__), _difference),
    torch.rsub: _reversed_difference,
    **dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__), _product),
    **dict.fromkeys((torch.multiply, torch.Tensor.multiply), _product),
    **dict.fromkeys((torch.Tensor.expand, torch.Tensor.expand_as, torch.broadcast_to), _expanded),
}
