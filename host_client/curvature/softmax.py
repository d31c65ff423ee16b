"""Curvature of the softmax cross-entropy with respect to the logits, as a square root of lowest rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_root(logits: Tensor) -> Tensor:
    """Columns S of the loss Hessian's square root, S Sᵀ = diag p − p pᵀ for each sample, p its softmax.

    With the unit vector q = √p, diag p − p pᵀ = diag(q) (I − q qᵀ) diag(q). The d − 1 columns other than the k-th of
    the Householder reflection I − v vᵀ / (1 + q_k), v = q + e_k, are an orthonormal basis of the complement of q; and
    scaled by diag(q), the columns returned. So S has as many columns as the Hessian has rank, and none that vanishes.
    Any k serves. Taking the likeliest class leaves the others with p ≤ ½, so that no entry is a difference of near
    equals, and each is accurate to rounding however sure the model is.

    Args:
        logits: shape (b, d), d ≥ 2.

    Returns:
        Columns by sample, shape (d − 1, b, d), in the dtype of the logits: entry (c, i) is column c for sample i.
        Column c belongs to class c, or to the last class where c is the likeliest.
    """
    d = logits.shape[1]
    q = (0.5 * F.log_softmax(logits, dim=1)).exp()  # (b, d)
    k = q.argmax(dim=1, keepdim=True)
    classes = torch.arange(d - 1, device=q.device)
    classes = torch.where(classes == k, d - 1, classes)  # (b, d - 1)
    q_columns = q.gather(1, classes).T[:, :, None]  # (d - 1, b, 1)
    q_k = q.gather(1, k)
    v = q.scatter_add(1, k, torch.ones_like(q_k))
    columns = -q_columns * (q * v / (1 + q_k))  # (d - 1, b, d)
    return columns.scatter_add_(2, classes.T[:, :, None], q_columns)
