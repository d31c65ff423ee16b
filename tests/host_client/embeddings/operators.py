"""Operators for every embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from host_client.curvature.kronecker.operator import KroneckerFactors, LayerFactors
from spu_link.operators import LayerRows, Rows


def rows(m: int, *sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> LayerRows:
    """Layers of explicit rows."""
    generator = torch.Generator().manual_seed(seed)
    return LayerRows([Rows(torch.randn(m, n, generator=generator, dtype=dtype) / n**0.5) for n in sizes])


def moment(n: int, rank: int, generator: torch.Generator) -> Tensor:
    """A second moment, singular where `rank` is below n."""
    a = torch.randn(rank, n, generator=generator, dtype=torch.float64)
    return a.T @ a / rank


def factors(*shapes: tuple[int, int], seed: int = 0) -> KroneckerFactors:
    """Kronecker factors of layers of shape (d, n), each with its bias as a parameter of its own in front of it."""
    generator = torch.Generator().manual_seed(seed)
    blocks, sizes = [], []
    for d, n in shapes:
        first = len(sizes)
        sizes += [d, d * (n - 1)] if n > 1 else [d]
        positions = (first + 1, first) if n > 1 else (first,)
        blocks.append(LayerFactors(positions, moment(n, max(1, n - 1), generator), moment(d, max(1, d - 1), generator)))
    return KroneckerFactors(blocks, sizes)


def vector(n: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """A drive."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relaxed(matrix: Tensor, drive: Tensor, start: Tensor, time: float) -> Tensor:
    """x(t) of dx = −(M x − b) ds from x₀, by eigenvectors, float64."""
    values, vectors = torch.linalg.eigh(matrix)
    decay = torch.exp(-values * time)
    return vectors @ (decay * (vectors.T @ start) - torch.expm1(-values * time) / values * (vectors.T @ drive))
