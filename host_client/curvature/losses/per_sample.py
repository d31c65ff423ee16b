"""Losses of one's own, as one value a sample, and their Hessians by autograd."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.utils._pytree import tree_map

from host_client.curvature.errors import UnsupportedCriterion
from host_client.curvature.losses.arguments import check_reduction
from host_client.curvature.losses.call import random_signs
from host_client.curvature.losses.convexity import positive_part
from host_client.curvature.losses.torch_loss import TorchLoss

CHUNK = 1 << 22
"""Entries of Hessians that are computed at once."""


class PerSampleLoss(nn.Module, ABC):
    """Base class of a loss of your own, for every curvature: define the loss of each sample in `per_sample`.

    The focal loss, for example (Lin et al., 2017, https://arxiv.org/abs/1708.02002):

        >>> import torch
        >>> from torch.nn import functional as F
        >>> class FocalLoss(PerSampleLoss):
        ...     def per_sample(self, output, target):
        ...         cross_entropy = F.cross_entropy(output, target, reduction="none")
        ...         return (1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy
        >>> criterion = FocalLoss()
        >>> criterion(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
        tensor(0.1733)

    The exact and the Monte-Carlo curvature take the Hessian of `per_sample` in the output of each sample, D × D for an
    output of D entries, by ``torch.func``; where the loss is not convex, its positive semi-definite part, with the
    warning CurvatureApproximation.

    Args:
        reduction: 'mean' or 'sum' over the samples.

    Raises:
        UnsupportedCriterion: for another reduction.
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction

    @abstractmethod
    def per_sample(self, output: Tensor, target: Any, /) -> Tensor:
        """Return the loss of each sample, shape (b,), each from its own output and target only.

        Args:
            output: of the model, shape (b, …).
            target: a tensor of shape (b, …), or a tuple, list or dict of them.
        """

    def forward(self, output: Tensor, target: Any) -> Tensor:
        """Return the mean, or the sum, of `per_sample`.

        Raises:
            UnsupportedCriterion: if its shape is not (b,).
        """
        losses = self.per_sample(output, target)
        if losses.shape != output.shape[:1]:
            raise UnsupportedCriterion(
                "per_sample",
                f"returned shape {tuple(losses.shape)} for an output of shape {tuple(output.shape)}; return one loss a "
                f"sample, shape {tuple(output.shape[:1])}",
            )
        return losses.sum() if self.reduction == "sum" else losses.mean()


_INDEPENDENT: WeakSet[PerSampleLoss] = WeakSet()
"""Losses found not to couple samples, in a batch of several."""


class PerSampleCall(TorchLoss):
    """A call of a `PerSampleLoss`: each sample is an element with the Hessian of its loss."""

    criterion: PerSampleLoss
    curved = frozenset({"output"})

    def _check_shapes(self) -> None:
        super()._check_shapes()
        check_reduction(self.criterion.reduction)
        if self.z.dim() < 1:
            raise UnsupportedCriterion("", "was given an output without dimensions; dimension 0 must hold the samples")

    def _dims(self) -> tuple[int, ...]:
        return tuple(range(1, self.z.dim()))

    def total(self, **replaced: Tensor) -> Tensor:
        """Return the sum over the samples."""
        return self.criterion.per_sample(*{**self.wide, **replaced}.values()).sum()

    def divisor(self) -> float:
        """Return the number of samples for 'mean'."""
        return 1.0 if self.criterion.reduction == "sum" else float(max(1, len(self.z)))

    @property
    def _rank(self) -> int:
        return math.prod(self.z.shape[1:])

    def _exact(self) -> tuple[Tensor, ...]:
        roots = torch.cat(list(self._roots()))  # (b, D, columns)
        return (roots.permute(2, 0, 1).reshape(self._rank, *self.z.shape),)

    def _monte_carlo(self, draws: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Random signs for the columns of the exact root."""
        scores = [
            torch.einsum("bdr,brk->kbd", root, random_signs((*root.shape[::2], draws), root, generator))
            for root in self._roots()
        ]
        return ((torch.cat(scores, 1) / draws**0.5).reshape(draws, *self.z.shape),)

    def _roots(self) -> Iterator[Tensor]:
        """Yield square roots of the Hessians of a few samples at a time, shape (samples, D, D)."""
        z, target, d = self.wide["output"], self.wide["target"], self._rank
        if len(z) > 1 and self.criterion not in _INDEPENDENT:
            self._check_independence()
        step = max(1, CHUNK // max(1, d * d))
        for start in range(0, max(1, len(z)), step):
            chunk = tree_map(lambda x: x[start : start + step], (z, target))  # noqa: B023
            hessian = self._map(jacrev(jacrev(self._of_sample)), *chunk).reshape(-1, d, d)
            hessian = (hessian + hessian.mT) / (2 * self.divisor())
            # Of a diverged model it is not finite, and neither is its root, without an error.
            finite = hessian.isfinite().all(-1).all(-1)[:, None, None]
            eigenvalues, vectors = torch.linalg.eigh(hessian.where(finite, 0))
            rounding = 16 * d * torch.finfo(z.dtype).eps * eigenvalues.abs().amax(-1, keepdim=True)
            root = positive_part(self.criterion, eigenvalues, rounding).sqrt()[:, None]
            yield (vectors * root).where(finite, torch.nan)

    def _of_sample(self, output: Tensor, target: Any) -> Tensor:
        output, target = tree_map(lambda x: x[None], (output, target))
        return self.criterion.per_sample(output, target).squeeze(0)

    def _check_independence(self) -> None:
        """Refuse a loss whose value in the batch is not the one it has by sample. Waits for the values, once."""
        z, target = self.wide["output"], self.wide["target"]
        together, alone = self.criterion.per_sample(z, target), self._map(self._of_sample, z, target)
        scale = together.abs().amax()
        if bool(((together - alone).abs() > 1e3 * torch.finfo(z.dtype).eps * scale).any()):
            raise UnsupportedCriterion(
                "per_sample",
                "returns other values for a batch than for its samples one by one; each loss must depend on its own "
                "output and target only, so give a loss that couples samples (contrastive, or with random numbers) "
                "curvature='empirical'",
            )
        if bool(scale.isfinite()):
            _INDEPENDENT.add(self.criterion)

    def _map(self, function: Any, *values: Any) -> Tensor:
        try:
            mapped: Tensor = vmap(function, randomness="different")(*values)
        except (RuntimeError, NotImplementedError) as error:
            raise UnsupportedCriterion(
                "per_sample",
                f"cannot be transformed by torch.func ({str(error).splitlines()[0]}); write it with torch's operations "
                "alone, without .item(), indices that depend on values, or in-place writes, or choose "
                "curvature='empirical'",
            ) from error
        return mapped
