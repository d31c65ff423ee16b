"""Operations of random models: their definition, their choices, and the table of them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeAlias

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Sequence[Shape]
"""The shape of one tensor of the model in each pass: extents that depend on the data differ from pass to pass."""


class Data:
    """Random data of one operation in one pass: index tensors, masks, lengths; the same ones if the pass is repeated.

    Args:
        seed: of the random numbers.
        regular: groups are contiguous and of one size, orders leave everything in place, masks are true throughout:
            what is learnt from such a pass need not hold in others.
    """

    def __init__(self, seed: int, *, regular: bool) -> None:
        self._seed, self._regular = seed, regular
        self._generator = torch.Generator().manual_seed(seed)

    def restart(self) -> Data:
        """Return the same data from the beginning."""
        return Data(self._seed, regular=self._regular)

    def integers(self, below: int, *shape: int) -> Tensor:
        """Draw integers from 0 to below − 1."""
        if self._regular and len(shape) == 1:
            return torch.arange(shape[0]) * below // shape[0]
        if self._regular:
            return torch.arange(torch.Size(shape).numel()).view(shape) % below
        return torch.randint(below, shape, generator=self._generator)

    def normal(self, *shape: int) -> Tensor:
        """Draw normal numbers."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def mask(self, *shape: int) -> Tensor:
        """Draw truth values."""
        return torch.ones(shape, dtype=torch.bool) if self._regular else self.integers(2, *shape).bool()

    def order(self, axis: int, *shape: int) -> Tensor:
        """Draw an order of the positions along an axis, for each line along it another."""
        order = self.normal(*shape).argsort(axis)
        return order.sort(axis).values if self._regular else order

    def permutation(self, extent: int) -> Tensor:
        """Draw an order of so many."""
        return self.order(0, extent)

    def lengths(self, total: int, parts: int) -> Tensor:
        """Draw lengths of at least one that sum up to a total, of at most so many parts."""
        if self._regular and total % parts == 0:
            return torch.full((parts,), total // parts)
        cuts = self.permutation(total - 1)[: parts - 1].sort().values + 1
        return torch.tensor([0, *cuts.tolist(), total]).diff()


class Place(nn.Module):
    """The parameters of one operation in a model, created when it runs for the first time.

    Attributes:
        data: of the present pass.
        complete: whether the first pass is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.complete = False
        self.data = Data(0, regular=False)

    def module(self, name: str, create: Callable[[], nn.Module]) -> Any:
        """Return the submodule of this name, in float64."""
        if not hasattr(self, name):
            self._check_incomplete(name)
            self.add_module(name, create().double())
        return getattr(self, name)

    def parameter(self, name: str, *shape: int, value: float | None = None) -> nn.Parameter:
        """Return the parameter of this name: random of order one, or constant."""
        if not hasattr(self, name):
            self._check_incomplete(name)
            initial = torch.randn(shape, dtype=torch.float64) if value is None else torch.full(shape, value).double()
            self.register_parameter(name, nn.Parameter(initial))
        found: nn.Parameter = getattr(self, name)
        return found

    def _check_incomplete(self, name: str) -> None:
        assert not self.complete, f"parameter {name!r} must be created in the first pass, whatever the data"


@dataclass(frozen=True)
class Axes:
    """A choice of as many distinct axes as there are kinds.

    Attributes:
        kinds: for each axis ``"any"``, or ``"fixed"`` for one whose extent is the same in all passes.
        smallest: each axis has at least this extent in all passes.
        largest: each fixed axis has at most this extent.
    """

    kinds: tuple[str, ...]
    smallest: int = 1
    largest: int = 8

    def options(self, shapes: Shapes) -> list[Any]:
        """Return the axes, or tuples of axes, that there are to choose from."""
        options = [axes for axes in permutations(range(len(shapes[0])), len(self.kinds)) if self._fit(axes, shapes)]
        return list(options) if len(self.kinds) > 1 else [axes[0] for axes in options]

    def _fit(self, axes: Sequence[int], shapes: Shapes) -> bool:
        return all(self._fits(kind, {s[axis] for s in shapes}) for kind, axis in zip(self.kinds, axes, strict=True))

    def _fits(self, kind: str, extents: set[int]) -> bool:
        if min(extents) < self.smallest:
            return False
        return kind == "any" or (len(extents) == 1 and max(extents) <= self.largest)


Choice: TypeAlias = Axes | st.SearchStrategy[Any]
"""A choice of an operation: axes of its operand, or something that does not depend on it."""

ANY = Axes(("any",))
FIXED = Axes(("fixed",))


@dataclass(frozen=True)
class Operation:
    """One way to compute with a tensor in a model.

    Attributes:
        functions: the functions of torch that it calls.
        choices: what it may choose, by argument of `run`.
        run: from its place in the model, the operand and the choices to the result.
        dims: min and max number of dimensions of the operand.
        precision: relative error of F that its arithmetic causes.
        recomputable: whether a checkpoint can run it again.
    """

    functions: tuple[str, ...]
    choices: Mapping[str, Choice]
    run: Callable[..., Tensor]
    dims: tuple[int, int]
    precision: float
    recomputable: bool

    def applies(self, shapes: Shapes) -> bool:
        """Return whether it can be applied to an operand of these shapes."""
        if not self.dims[0] <= len(shapes[0]) <= self.dims[1]:
            return False
        return all(choice.options(shapes) for choice in self.choices.values() if isinstance(choice, Axes))

    def strategy(self, shapes: Shapes) -> st.SearchStrategy[dict[str, Any]]:
        """Return what it may choose for an operand of these shapes, to which it applies."""
        return st.fixed_dictionaries(
            {
                name: st.sampled_from(choice.options(shapes)) if isinstance(choice, Axes) else choice
                for name, choice in self.choices.items()
            }
        )


OPERATIONS: dict[str, Operation] = {}
"""All operations by name."""


def operation(
    *functions: str,
    dims: tuple[int, int] = (1, 6),
    precision: float = 1e-9,
    recomputable: bool = True,
    **choices: Choice,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Enter a function of a `Place`, an operand and the choices into the table, by its name."""

    def enter(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        assert run.__name__ not in OPERATIONS
        OPERATIONS[run.__name__] = Operation(functions, choices, run, dims, precision, recomputable)
        return run

    return enter


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    """Choose one of these values."""
    return st.sampled_from(values)


def fold(h: Tensor, *axes: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Bring axes to the end and flatten all others into one before them.

    Returns:
        The tensor of shape (rest, *axes), and the way back for a result of as many dimensions.
    """
    ends = tuple(range(-len(axes), 0))
    moved = h.movedim(axes, ends)
    rest = moved.shape[: -len(axes)]
    folded = moved.reshape(rest.numel(), *moved.shape[-len(axes) :])
    return folded, lambda result: result.reshape(*rest, *result.shape[1:]).movedim(ends, axes)
