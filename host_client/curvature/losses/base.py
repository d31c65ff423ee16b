"""What a criterion must tell so that its curvature is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from host_client.curvature.errors import UnsupportedCriterion


class Loss(ABC):
    """A criterion as a sum over elements: mass_e ℓ(z_e), each ℓ a negative log-likelihood whose Hessian is a Fisher.

    An *element* is what one term of the sum depends on: the d logits at one position, or a single output. The elements
    of a sample are its q *positions*. The methods below take z by element, shape (b, q, d), float32 or float64.
    """

    criterion: type[nn.Module]
    """The class whose ``forward`` is meant."""

    def check(self, criterion: Any) -> None:
        """Refuse options whose curvature is not known.

        Raises:
            UnsupportedCriterion: naming the option.
        """
        if criterion.reduction not in ("mean", "sum"):
            raise UnsupportedCriterion(
                "reduction",
                f"is {criterion.reduction!r}, which has no single loss to differentiate; choose 'mean' or 'sum'",
            )

    def check_shapes(self, z: Tensor, target: Tensor) -> None:
        """Refuse a target that the loss would broadcast: its elements would be other ones than those of z.

        Raises:
            UnsupportedCriterion: naming both shapes.
        """
        if z.shape != target.shape:
            raise UnsupportedCriterion(
                "",
                f"was given a target of shape {tuple(target.shape)} for an input of shape {tuple(z.shape)}; "
                "give both one shape",
            )

    def leaves_out(self, target: Tensor) -> bool:
        """Whether a target of this kind can take elements out of the loss, so that their rows vanish."""
        return False

    def dimension(self, shape: torch.Size) -> int:
        """Dimension d of an element of an input of this shape."""
        return 1

    def elements(self, z: Tensor, samples: int) -> Tensor:
        """Z by element, shape (b, q, d), contiguous."""
        return z.reshape(samples, -1, 1).contiguous()

    def restore(self, columns: Tensor, shape: torch.Size) -> Tensor:
        """From columns by element, shape (c, b, q, d), to shape (c, *shape): `elements`, undone."""
        return columns.reshape(len(columns), *shape)

    @abstractmethod
    def weights(self, criterion: Any, z: Tensor, target: Tensor) -> tuple[Tensor | None, Tensor | float]:
        """Mass of each element as 'sum' has it, and what 'mean' divides by.

        Args:
            criterion: an instance of `self.criterion`.
            z: its input as it was given, in float32 or float64.
            target: its target as it was given.

        Returns:
            The mass, of b·q entries in the order of the elements, or None where it is one; and the divisor.
        """

    @abstractmethod
    def root(self, z: Tensor, mass: Tensor) -> Tensor:
        """Columns S of shape (r, b, q, d), S Sᵀ the Hessian of mass · ℓ at each element.

        Args:
            z: by element, shape (b, q, d).
            mass: shape (b, q) or (1, 1).
        """

    @abstractmethod
    def scores(self, z: Tensor, mass: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Draws of √mass ∇ℓ under labels from the model's own distribution, independent in all; shape (draws, b, q, d).

        The expectation of a score's outer product is the Hessian of mass · ℓ, and that of two elements' is zero.
        """

    def rank(self, d: int) -> int:
        """Number r of columns of `root`."""
        return d


def at_least_zero(name: str, weight: Tensor | None) -> None:
    """Refuse weights that would make the curvature indefinite.

    Raises:
        UnsupportedCriterion: naming the option.
    """
    if weight is not None and not bool((weight >= 0).all()):
        raise UnsupportedCriterion(
            name, f"has an entry of {weight.min().item():g}, which makes the loss unbounded below; use weights ≥ 0"
        )
