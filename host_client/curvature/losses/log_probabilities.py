"""Losses of log-probabilities, whose Hessian is zero and whose Fisher information is that of the classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from host_client.curvature.errors import UnsupportedCriterion
from host_client.curvature.losses.call import Kind, random_signs
from host_client.curvature.losses.cross_entropy import CrossEntropy
from host_client.curvature.losses.torch_loss import TorchLoss
from spu_link.cached import cached_property


class NLL(CrossEntropy):
    """`nn.NLLLoss`: the log-probabilities at one position are an element with Fisher information mass diag(p).

    The loss mass (−z_y) is linear in z = log p, so that its Hessian is zero. Under classes drawn from p the gradient is
    −e_ŷ, and E[e_ŷ e_ŷᵀ] = diag(p). Behind a log-softmax of logits a, with Jacobian J = I − 1 pᵀ, it is
    Jᵀ diag(p) J = diag(p) − p pᵀ: that of the cross-entropy of a. That needs Σ_c p_c = 1.
    """

    def _check_curvature(self, kind: Kind) -> None:
        super()._check_curvature(kind)
        if not self._are_distributions:
            raise UnsupportedCriterion(
                "",
                f"was given an input whose exp() does not sum to 1 along dimension {self._class_dim}, and the "
                f"curvature {kind!r} is known for log-probabilities only; apply log_softmax, or choose "
                "curvature='empirical'",
            )

    @cached_property
    def _are_distributions(self) -> bool:
        return log_softmax_dim(self.z) == self._class_dim or is_normalised(self.z, self._class_dim, self.counts())

    @property
    def _rank(self) -> int:
        return self.z.shape[self._class_dim]

    def _exact(self) -> tuple[Tensor, ...]:
        return self._of_outputs(torch.diag_embed(self._diagonal(), dim1=0, dim2=-1))

    def _monte_carlo(self, draws: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Random signs for the diagonal."""
        diagonal = self._diagonal()
        return self._of_outputs(random_signs((draws, *diagonal.shape), diagonal, generator) * (diagonal / draws**0.5))

    def _diagonal(self) -> Tensor:
        return (self._by_element().exp() * self._reduced_mass()[..., None]).sqrt()


class KLDiv(NLL):
    """`nn.KLDivLoss`: the log-probabilities z at one position are an element with Fisher information T diag(p).

    The loss Σ_c t_c (log t_c − z_c) is, but for a constant, T times the cross-entropy of the distribution t / T with
    T = Σ_c t_c, so that it is a sum of T `NLL` of classes with frequencies t / T; the Fisher information of each is
    diag(p). Classes are in the dimension of the log-softmax that made z. Where z came otherwise they are in dimension
    1, or in the last one if z is normalised there only. 'mean' divides by the number of all entries, 'batchmean' by the
    size of the first dimension.
    """

    def _check_shapes(self) -> None:
        TorchLoss._check_shapes(self)
        target = self.arguments["target"]
        if self.z.shape != target.shape or self.z.dim() < 1:
            raise UnsupportedCriterion(
                "",
                f"was given a target of shape {tuple(target.shape)} for an input of shape {tuple(self.z.shape)}; "
                "give both one shape, with a dimension of classes",
            )

    @cached_property
    def _class_dim(self) -> int:
        known, last = log_softmax_dim(self.z), self.z.dim() - 1
        if known is not None:
            return known
        if last > 1 and not is_normalised(self.z, 1) and is_normalised(self.z, last):
            return last
        return min(1, last)

    def counts(self) -> Tensor | None:
        """Return None: all targets are distributions."""
        return None

    @cached_property
    def _masses(self) -> tuple[Tensor, Tensor | float]:
        target = self.wide["target"].exp() if self.wide["log_target"] else self.wide["target"]
        whole = self.arguments["reduction"] == "mean"
        return target.sum(self._class_dim), float(self.z.numel() if whole else len(self.z))


def log_softmax_dim(z: Tensor) -> int | None:
    """Return the dimension of the log-softmax that z is the result of, None if it is not."""
    if z.grad_fn is None or z.grad_fn.name() != "LogSoftmaxBackward0":
        return None
    dim: int = z.grad_fn._saved_dim  # type: ignore[attr-defined]
    return dim if dim < z.dim() else dim - 2**64 + z.dim()  # a negative one is saved as an unsigned number


@torch.no_grad()
def is_normalised(z: Tensor, dim: int, counts: Tensor | None = None) -> bool:
    """Return whether Σ exp(z) = 1 along a dimension, but for rounding, wherever it counts. Waits for the value."""
    excess = z.detach().to(torch.float64 if z.dtype == torch.float64 else torch.float32).logsumexp(dim).abs()
    tolerance = max(1e-4, 16 * torch.finfo(z.dtype).eps * (1 + math.log(z.shape[dim])))
    wrong = excess > tolerance
    return not bool((wrong if counts is None else wrong & counts).any())
