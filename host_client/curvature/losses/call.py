"""The interface of one call of a loss: its elements, and a square root of the curvature of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import get_args

import torch
from torch import Tensor

from host_client.names import Kind as Kind


def check_kind(kind: str) -> None:
    """Raise ValueError for a curvature that does not exist."""
    if kind not in get_args(Kind):
        raise ValueError(f"curvature {kind!r} is not known; choose 'exact', 'mc' or 'empirical'")


class LossCall(ABC):
    """One call of a loss: a sum over *elements*, each a function of its own entries of the outputs.

    The elements are independent: the Hessian of the loss in its outputs is block diagonal, with one block an element.

    Attributes:
        outputs: the arguments of the loss that have a ``grad_fn``; empty if there is nothing to differentiate.
        element_dims: for each output, its dimensions that lie within one element.
        element_shape: sizes of the other dimensions, in order: the elements, the same ones for all outputs.
    """

    outputs: tuple[Tensor, ...]
    element_dims: tuple[tuple[int, ...], ...]
    element_shape: torch.Size

    def rank(self, kind: Kind, draws: int) -> int:
        """Return the number r of columns of `root`.

        Raises:
            UnsupportedCriterion, ValueError: as `root`.
        """
        self._check(kind, draws)
        return {"exact": self._rank, "mc": draws, "empirical": 1}[kind]

    def counts(self) -> Tensor | None:
        """Return which elements contribute to the loss, bool of shape `element_shape`; None if all do."""
        return None

    @torch.no_grad()
    def root(self, kind: Kind, draws: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Return columns whose outer products, element by element, sum to the curvature of the loss.

        With S_e the columns of element e, over all outputs, and H_e the Hessian of the loss as it reduces (divisor of
        the mean, weights and masses included) with respect to element e:

        - ``"exact"``: S_e S_eᵀ = H_e. Where the Hessian says nothing about the model (a negative log-likelihood of
          log-probabilities, of a variance), H_e is the Fisher information instead, as the class of the call documents.
        - ``"mc"``: E[S_e S_eᵀ] = H_e, from `draws` columns that are independent of each other and over elements.
        - ``"empirical"``: one column, √n ∂L/∂z with n the divisor of the mean, 1 for the reduction 'sum'. That is
          Σ w_y over the targets that are not ignored for cross-entropy and NLL, the number of elements for targets
          that are probabilities, Σ weight for a weighted MSE and L1, the batch size for 'batchmean' and a
          `PerSampleLoss`, and the number of outputs otherwise.

        Computed in float32, or float64 for float64 outputs, and rounded once.

        Args:
            kind: which curvature.
            draws: number of columns of the Monte-Carlo Fisher, at least one.
            generator: of the random numbers, on the device of the outputs; None for torch's global one.

        Returns:
            One tensor an output, shape (r, *output.shape), in its dtype and without a graph.

        Raises:
            UnsupportedCriterion: where this curvature of the loss is not known or zero.
            ValueError: for an unknown kind, or fewer than one draw.
        """
        self._check(kind, draws)
        if kind == "exact":
            columns = self._exact()
        elif kind == "mc":
            columns = self._monte_carlo(draws, generator)
        else:
            columns = tuple(gradient[None] for gradient in self._empirical())
        return tuple(column.to(z.dtype) for column, z in zip(columns, self.outputs, strict=True))

    def _check(self, kind: Kind, draws: int) -> None:
        check_kind(kind)
        if kind == "mc" and draws < 1:
            raise ValueError(f"{draws} Monte-Carlo samples; at least one is needed")
        if kind != "empirical":
            self._check_curvature(kind)

    @abstractmethod
    def _check_curvature(self, kind: Kind) -> None:
        """Raise UnsupportedCriterion if the exact curvature, and its Monte-Carlo estimate, are not known."""

    @property
    @abstractmethod
    def _rank(self) -> int:
        """Number of columns of `_exact`."""

    @abstractmethod
    def _exact(self) -> tuple[Tensor, ...]:
        """Columns of the exact root."""

    @abstractmethod
    def _monte_carlo(self, draws: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Columns of the Monte-Carlo root."""

    @abstractmethod
    def _empirical(self) -> tuple[Tensor, ...]:
        """√n times the gradient, in the shapes of the outputs."""


def random_signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return independent random signs, ±1 with probability ½ each, in the dtype and on the device of `like`."""
    return torch.randint(2, shape, dtype=like.dtype, device=like.device, generator=generator).mul_(2).sub_(1)
