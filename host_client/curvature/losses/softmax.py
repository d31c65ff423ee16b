"""Curvature of the softmax cross-entropy with respect to the logits, as a square root of lowest rank."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_root(logits: Tensor, mass: Tensor | None = None) -> Tensor:
    """Columns S of the Hessian's square root, S Sᵀ = mass (diag p − p pᵀ) for each element, p its softmax.

    With the unit vector q = √p, diag p − p pᵀ = diag(q) (I − q qᵀ) diag(q). The d − 1 columns other than the k-th of
    the Householder reflection I − v vᵀ / (1 + q_k), v = q + e_k, are an orthonormal basis of the complement of q; and
    scaled by diag(q), the columns returned: q_c (e_c − u), where u_k = q_k and u_j = p_j / (1 + q_k) elsewhere. So S
    has as many columns as the Hessian has rank, and none that vanishes. Any k serves. Taking the likeliest class leaves
    the others with p ≤ ½, so that no entry is a difference of near equals, and each is accurate to rounding however
    sure the model is.

    Args:
        logits: shape (…, d), d ≥ 2.
        mass: weight of each element, at least zero, shape (…); one if left out.

    Returns:
        Columns by element, shape (d − 1, …, d), in the dtype of the logits: entry (c, i) is column c for element i.
        Column c belongs to class c, or to the last class where c is the likeliest.
    """
    d = logits.shape[-1]
    p = logits.softmax(-1)
    q = p.sqrt()
    q_k, k = q.max(-1, keepdim=True)
    minus_u = p.div_(-1 - q_k).scatter_(-1, k, -q_k)
    classes = torch.arange(d - 1, device=q.device)
    classes = torch.where(classes == k, d - 1, classes)  # (…, d - 1)
    q_c = q.gather(-1, classes)
    if mass is not None:
        q_c *= mass.sqrt()[..., None]
    q_c = q_c.movedim(-1, 0)[..., None]  # (d - 1, …, 1)
    return (q_c * minus_u).scatter_add_(-1, classes.movedim(-1, 0)[..., None], q_c)
