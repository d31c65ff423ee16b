"""Requirements on the values of tensors."""

from __future__ import annotations

import torch
from scipy.linalg.lapack import dpotrf
from torch import Tensor

from spu_link.errors import InvalidProgram, mismatch

TILE = 128
"""Rows of a matrix that are held against its columns at once, so that both stay in the processor's cache."""


def all_finite(tensor: Tensor) -> bool:
    """Return whether there is neither NaN nor infinity in a tensor of at least one element."""
    # aminmax is one pass without a temporary, and passes NaN on.
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_finite(field: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        InvalidProgram: naming `field` and the first offending value.
    """
    if not all_finite(tensor):
        raise _bad_value(field, tensor, ~torch.isfinite(tensor), "finite")


def check_range(field: str, indices: Tensor, end: int) -> None:
    """Refuse indices below 0 or from `end` on.

    Raises:
        InvalidProgram: naming `field` and the first offending value.
    """
    low, high = torch.aminmax(indices)
    if low < 0 or high >= end:
        raise _bad_value(field, indices, (indices < 0) | (indices >= end), f"at least 0 and less than {end}")


def check_semidefinite(field: str, matrix: Tensor, rounding: float) -> None:
    """Refuse a matrix that is not symmetric or not positive semi-definite.

    Args:
        field: its name in errors.
        matrix: shape (N, N).
        rounding: error of its elements in addition to the rounding of their dtype, as a fraction of the largest.

    Raises:
        InvalidProgram: naming `field`, and by how much.
    """
    f = matrix.to(torch.float64)
    # What rounding alone can do to a matrix product of this size and dtype, and then to each element by itself.
    tolerance = (max(len(f), 64) * torch.finfo(matrix.dtype).eps + len(f) * rounding) * float(f.abs().max())
    asymmetry = max(float((f[i : i + TILE, i:] - f[i:, i : i + TILE].T).abs().max()) for i in range(0, len(f), TILE))
    if asymmetry > tolerance:
        raise mismatch(field, f"asymmetric by {asymmetry:.3g}", "a symmetric matrix")
    shifted = f.clone()
    shifted.diagonal().add_(tolerance)
    # Cholesky costs a fraction of what eigenvalues cost, and by scipy's LAPACK a third of what it costs by torch's.
    if dpotrf(shifted.numpy().T, lower=1, overwrite_a=1, clean=0)[1] == 0:
        return
    smallest = float(torch.linalg.eigvalsh(f)[0])
    if smallest < -tolerance:
        raise mismatch(field, f"indefinite, with eigenvalue {smallest:.3g}", "a positive semi-definite matrix")


def _bad_value(field: str, tensor: Tensor, bad: Tensor, expected: str) -> InvalidProgram:
    """The error for the first of the bad values."""
    where = tuple(torch.nonzero(bad)[0].tolist())
    value = tensor[where].item()
    return InvalidProgram(
        f"{field}{list(where)} is {value}; every value must be {expected}", field=field, found=value, expected=expected
    )
