"""Names of choices, for those who need them before torch is loaded."""

from __future__ import annotations

from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["exact", "mc", "empirical"]
"""The kind of curvature: the exact generalised Gauss–Newton matrix, the Monte-Carlo Fisher, or the empirical Fisher."""

OnLoss: TypeAlias = Literal["raise", "wait", "digital", "gradient"]
"""Policy of a step when the device is lost, has failed, is held by another or is too stale: raise; wait until it has
recovered; solve the system digitally; or update with the gradient itself."""

OptimizerName: TypeAlias = Literal["tngd", "ngd", "ngd-cg", "ngd-woodbury", "kfac", "adam", "sgd"]
"""Names that `make_optimizer` accepts."""
