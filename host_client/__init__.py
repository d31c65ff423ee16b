"""The training side: connect to an SPU, and train PyTorch models through it.

    from host_client import connect, TNGD

The names load what they need when they are first used, so that ``tngd --help`` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from host_client.blocking import Session, Spu, connect
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
    "Diverged",
    "LevenbergMarquardt",
    "LineSearch",
    "NGDWoodbury",
    "Session",
    "Spu",
    "connect",
    "make_optimizer",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "host_client.blocking" if name in ("Session", "Spu", "connect") else "host_client.optimizers"
    return getattr(import_module(home), name)
