"""The training side: connect to an SPU, and train PyTorch models through it.

    from host_client import connect, TNGD

The names load what they need when they are first used, so that ``tngd --help`` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import spu_link  # noqa: F401 - comes before gRPC, whose own log it turns off

if TYPE_CHECKING:
    from host_client.blocking import Session, Spu, connect
    from host_client.curvature import (
        CurvatureApproximation,
        CurvatureFallback,
        CurvatureMismatch,
        CurvatureTooLarge,
        PerSampleLoss,
        UnsupportedCriterion,
        UnsupportedLayer,
        UnsupportedProcessGroup,
    )
    from host_client.loop import NoOlderThan
    from host_client.optimizers import (
        KFAC,
        NGD,
        NGDCG,
        TNGD,
        Diverged,
        LevenbergMarquardt,
        LineSearch,
        NGDWoodbury,
        make_optimizer,
    )

__all__ = [
    "KFAC",
    "NGD",
    "NGDCG",
    "TNGD",
    "CurvatureApproximation",
    "CurvatureFallback",
    "CurvatureMismatch",
    "CurvatureTooLarge",
    "Diverged",
    "LevenbergMarquardt",
    "LineSearch",
    "NGDWoodbury",
    "NoOlderThan",
    "PerSampleLoss",
    "Session",
    "Spu",
    "UnsupportedCriterion",
    "UnsupportedLayer",
    "UnsupportedProcessGroup",
    "connect",
    "make_optimizer",
]

_HOMES = {
    **dict.fromkeys(("Session", "Spu", "connect"), "host_client.blocking"),
    "NoOlderThan": "host_client.loop",
    **dict.fromkeys(
        (
            "CurvatureApproximation",
            "CurvatureFallback",
            "CurvatureMismatch",
            "CurvatureTooLarge",
            "PerSampleLoss",
            "UnsupportedCriterion",
            "UnsupportedLayer",
            "UnsupportedProcessGroup",
        ),
        "host_client.curvature",
    ),
}
"""Modules of the names that are not in `host_client.optimizers`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "host_client.optimizers")), name)
