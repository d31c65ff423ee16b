"""Gram matrices A Aᵀ, added up in float64 from products in the operands' dtype.

All functions here fill the lower triangle alone: torch has no product that knows of the symmetry, and half of the work
is half of the work. `mirror` fills the other half, once, when everything has been added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 192
"""Rows of a Gram matrix that are computed at once."""


def gram_of(columns: Iterable[Tensor], m: int) -> Tensor:
    """Gram matrix R Rᵀ of shape (m, m), float64, from consecutive column stretches R_j of shape (m, n_j)."""
    return mirror(add_products(torch.zeros(m, m, dtype=torch.float64), columns))


def add_products(total: Tensor, columns: Iterable[Tensor]) -> Tensor:
    """Add Σ_j R_j R_jᵀ to the lower triangle of `total`, from stretches R_j of shape (m, n_j)."""
    for part in columns:
        part = part.contiguous()
        for rows in strips(len(total), STRIP):
            total[rows, : rows.stop] += product(part[rows], part[: rows.stop]).to(total.device)
    return total


def mirror(total: Tensor) -> Tensor:
    """Make a matrix symmetric, in place, from its lower triangle."""
    for rows in strips(len(total), STRIP):
        total[: rows.start, rows] = total[rows, : rows.start].T
        total[rows, rows] = total[rows, rows].tril() + total[rows, rows].tril(-1).T
    return total


def strips(m: int, size: int) -> Iterator[slice]:
    """Consecutive stretches of `size` of m rows, the last one shorter."""
    return (slice(i, min(i + size, m)) for i in range(0, m, size))


def product(left: Tensor, right: Tensor) -> Tensor:
    """The product left · rightᵀ.

    In float32 on a CPU by oneDNN, which uses all that the processor has. MKL, torch's default, takes twice as long on
    processors that Intel did not make; numpy's threads get in the way of torch's.
    """
    if left.dtype == torch.float32 and left.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return F.linear(left.to_mkldnn(), right).to_dense()
    return left @ right.T
