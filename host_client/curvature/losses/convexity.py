"""The positive semi-definite part of a Hessian, with a warning where it differs from the Hessian."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

from torch import Tensor

from host_client.curvature.errors import CurvatureApproximation

_EXAMINED: WeakSet[Any] = WeakSet()
_REPORTED: WeakSet[Any] = WeakSet()


def positive_part(criterion: Any, eigenvalues: Tensor, tolerance: Tensor | float = 0.0) -> Tensor:
    """Return the eigenvalues with the negative ones replaced by zero, and warn once for each criterion.

    On an accelerator the eigenvalues are examined in the first call of a criterion only, so that no later step waits
    for them.

    Args:
        criterion: the loss, for the warning.
        eigenvalues: of the Hessians, any shape.
        tolerance: what rounding explains, broadcast.

    Warns:
        CurvatureApproximation: if one is below minus the tolerance.
    """
    if criterion not in _REPORTED and (eigenvalues.device.type == "cpu" or criterion not in _EXAMINED):
        _EXAMINED.add(criterion)
        if bool((eigenvalues < -tolerance).any()):
            _REPORTED.add(criterion)
            name = getattr(criterion, "__name__", type(criterion).__name__)
            warnings.warn(
                f"{name} is not convex: its Hessian is replaced by its positive semi-definite part; for an F without a "
                "Hessian, choose curvature='empirical'",
                CurvatureApproximation,
                stacklevel=2,
            )
    return eigenvalues.clamp_min(0)
