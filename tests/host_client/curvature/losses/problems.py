"""Criteria with an input and a target, drawn by hypothesis, and the dense matrices they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

REDUCTIONS = st.sampled_from(["mean", "sum"])


@dataclass(frozen=True)
class Problem:
    """A criterion with options, its input and target in float64, and the number of samples they hold."""

    kind: type[nn.Module]
    options: dict[str, Any]
    z: Tensor
    target: Tensor
    samples: int

    @property
    def criterion(self) -> nn.Module:
        """The criterion."""
        return self.kind(**self.options)

    def by_sample(self) -> list[tuple[Tensor, Tensor]]:
        """Input and target of each sample."""
        rows = len(self.z) // self.samples
        return list(zip(self.z.split(rows), self.target.split(rows), strict=True))

    def blocks(self, columns: Tensor) -> Tensor:
        """Σ_k s_ki s_kiᵀ for each sample i, shape (b, n, n)."""
        assert columns.shape[1:] == self.z.shape
        by_sample = columns.reshape(len(columns), self.samples, -1)
        return torch.einsum("kbi,kbj->bij", by_sample, by_sample)

    def matrix(self, columns: Tensor) -> Tensor:
        """The curvature of all of z that the columns stand for: no two samples are coupled."""
        return torch.block_diag(*self.blocks(columns))

    def hessian(self) -> Tensor:
        """The Hessian of the criterion as it is, by autograd, for all of z."""
        hessian = torch.autograd.functional.hessian(lambda z: self.criterion(z, self.target), self.z)
        return hessian.reshape(self.z.numel(), self.z.numel())


@st.composite
def cross_entropies(draw: st.DrawFn) -> Problem:
    """Every option, layout and kind of target of a cross-entropy; some element is never ignored."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    b, d, s = draw(st.integers(1, 3)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    shape = draw(st.sampled_from([(b, d), (b * s, d), (b, d, s), (b, d, s, 2), (b * s, d, 2)]))
    z = 2 * torch.randn(shape, dtype=torch.float64, generator=generator)
    weight = torch.rand(d, dtype=torch.float64, generator=generator) + 0.1 if draw(st.booleans()) else None
    if weight is not None and draw(st.booleans()):
        weight[0] = 0.0
    ignore = draw(st.sampled_from([-100, 1, 7]))
    options = {
        "weight": weight,
        "label_smoothing": draw(st.sampled_from([0.0, 0.2, 1.0])),
        "ignore_index": ignore,
        "reduction": draw(REDUCTIONS),
    }
    if draw(st.booleans()):
        target = torch.rand(shape, dtype=torch.float64, generator=generator).softmax(1)
        del options["ignore_index"]  # torch's own refusal
    else:
        elements = (shape[0], *shape[2:])
        target = torch.randint(d, elements, generator=generator)
        ignored = torch.rand(elements, generator=generator) < draw(st.sampled_from([0.0, 0.5]))
        target[ignored] = ignore
        counted = d - 1 if ignore != d - 1 else 0
        target.view(-1)[-1] = counted
        if weight is not None:
            weight[counted] = 0.7
    return Problem(nn.CrossEntropyLoss, options, z, target, b)


@st.composite
def output_losses(draw: st.DrawFn) -> Problem:
    """Every option and layout of the losses whose outputs stand each for itself."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    b, d, s = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = draw(st.sampled_from([(b,), (b, d), (b * s, d), (b, s, d), (b, d, s, 2)]))
    z = 2 * torch.randn(shape, dtype=torch.float64, generator=generator)
    target = torch.rand(shape, dtype=torch.float64, generator=generator)
    options: dict[str, Any] = {"reduction": draw(REDUCTIONS)}
    if draw(st.booleans()):
        return Problem(nn.MSELoss, options, z, target, b)
    if draw(st.booleans()):
        target = target.round()
    for name in ("weight", "pos_weight"):
        broadcast = draw(st.sampled_from([None, shape, shape[-1:], (1,) * len(shape)]))
        if broadcast is not None:
            options[name] = 2 * torch.rand(broadcast, dtype=torch.float64, generator=generator)
    return Problem(nn.BCEWithLogitsLoss, options, z, target, b)


PROBLEMS = cross_entropies() | output_losses()
