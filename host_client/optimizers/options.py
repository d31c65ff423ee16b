"""The arguments that every natural-gradient optimizer takes, as a type: `NaturalGradient` says what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Required, TypeAlias, TypedDict

from host_client.curvature import Check, GradScaler, Kind
from host_client.optimizers.levenberg_marquardt import LevenbergMarquardt
from host_client.optimizers.schedules import Scheduled
from host_client.optimizers.trial import LineSearch
from spu_link.operators import Operator

Curvature: TypeAlias = Kind | Callable[[], Operator]
"""Which curvature is captured, or what gives one."""


class NaturalGradientOptions(TypedDict, total=False):
    """Keyword arguments of `NaturalGradient`, for its subclasses: ``**options: Unpack[NaturalGradientOptions]``."""

    lr: Required[Scheduled]
    damping: Required[Scheduled]
    momentum: Scheduled
    betas: tuple[float, float] | None
    eps: float
    weight_decay: Scheduled
    groups: Sequence[Mapping[str, Any]] | None
    curvature: Curvature
    samples: int
    check: Check
    curvature_every: int
    grad_scaler: GradScaler | None
    trust_region: Scheduled | None
    adapt_damping: LevenbergMarquardt | None
    spring: Scheduled
    line_search: LineSearch | None
