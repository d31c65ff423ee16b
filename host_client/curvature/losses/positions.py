"""Columns for samples with several positions, each column in one position of a sample only."""

from __future__ import annotations

from torch import Tensor


def spread(root: Tensor, mass: Tensor, width: int) -> Tensor:
    """Columns of a block diagonal from its blocks: the Hessian couples no two positions.

    Args:
        root: columns of each position's own block, shape (r, b, q, d).
        mass: shape (b, q), or any other if all positions are taken; those where it is zero are left out.
        width: most positions that a sample takes, from one to q.

    Returns:
        Shape (width·r, b, q, d). Column (j, c) is, for each sample, column c at the j-th position it takes, and zero
        elsewhere.
    """
    r, b, q, d = root.shape
    if q == 1:
        return root
    columns = root.new_zeros(width, r, b, q, d)
    if width == q:
        columns.diagonal(dim1=0, dim2=3).copy_(root.movedim(2, -1))
    else:
        # Where a sample takes fewer than `width` positions, those of no mass follow, whose columns are zero.
        taken = (mass == 0).byte().argsort(dim=1, stable=True)[:, :width]
        index = taken.T[:, None, :, None, None]  # (width, 1, b, 1, 1)
        columns.scatter_(3, index.expand(width, r, b, 1, d), _at(root, taken))
    return columns.flatten(0, 1)


def _at(root: Tensor, taken: Tensor) -> Tensor:
    """Entries of shape (width, r, b, 1, d) at the positions `taken`, shape (b, width)."""
    r, b, _, d = root.shape
    chosen = root.gather(2, taken[None, :, :, None].expand(r, b, taken.shape[1], d))
    return chosen.movedim(2, 0)[:, :, :, None]
