"""The training side: connect to an SPU, and train PyTorch models through it.

    from host_client import TNGD, connect

Everything that the documentation shows is here. The names load what they need when they are first used, so that
``tngd --help`` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import spu_link  # noqa: F401 - comes before gRPC, whose own log it turns off

if TYPE_CHECKING:
    from host_client.blocking import Feed, Session, Spu, Upload, connect
    from host_client.curvature import (
        Capture,
        CurvatureApproximation,
        CurvatureFallback,
        CurvatureMismatch,
        CurvatureTooLarge,
        PerSampleLoss,
        UnsupportedCriterion,
        UnsupportedLayer,
        UnsupportedProcessGroup,
    )
    from host_client.loop import NoOlderThan, TooStale
    from host_client.optimizers import KFAC, NGD, TNGD, Diverged, LevenbergMarquardt, LineSearch, make_optimizer
    from host_client.record import RunRecord
    from host_client.solvers import ConjugateGradients, settling_time, solve_dense, solve_direct, solve_woodbury
    from spu_link.errors import (
        CapacityExceeded,
        Clipped,
        ClockMismatch,
        DeadlineExceeded,
        DeviceBusy,
        DeviceFault,
        DeviceHalted,
        DeviceUnavailable,
        EpochMismatch,
        InvalidProgram,
        NoProgram,
        OperatorGone,
        Persistent,
        ProtocolError,
        ReadInPast,
        Retryable,
        SessionClosed,
        SessionExpired,
        SessionRequired,
        SpuError,
        StaleSession,
        UnknownRole,
        Unsupported,
        UnsupportedBlock,
        UploadCorrupt,
        WrongProcess,
    )
    from spu_link.operators import (
        Conv2dRows,
        Dense,
        EmbeddingRows,
        FactorOperator,
        Kept,
        LayerRows,
        LinearRows,
        Operator,
        Rows,
        stack,
    )

__all__ = [
    "KFAC",
    "NGD",
    "TNGD",
    "CapacityExceeded",
    "Capture",
    "Clipped",
    "ClockMismatch",
    "ConjugateGradients",
    "Conv2dRows",
    "CurvatureApproximation",
    "CurvatureFallback",
    "CurvatureMismatch",
    "CurvatureTooLarge",
    "DeadlineExceeded",
    "Dense",
    "DeviceBusy",
    "DeviceFault",
    "DeviceHalted",
    "DeviceUnavailable",
    "Diverged",
    "EmbeddingRows",
    "EpochMismatch",
    "FactorOperator",
    "Feed",
    "InvalidProgram",
    "Kept",
    "LayerRows",
    "LevenbergMarquardt",
    "LineSearch",
    "LinearRows",
    "NoOlderThan",
    "NoProgram",
    "Operator",
    "OperatorGone",
    "PerSampleLoss",
    "Persistent",
    "ProtocolError",
    "ReadInPast",
    "Retryable",
    "Rows",
    "RunRecord",
    "Session",
    "SessionClosed",
    "SessionExpired",
    "SessionRequired",
    "Spu",
    "SpuError",
    "StaleSession",
    "TooStale",
    "UnknownRole",
    "Unsupported",
    "UnsupportedBlock",
    "UnsupportedCriterion",
    "UnsupportedLayer",
    "UnsupportedProcessGroup",
    "Upload",
    "UploadCorrupt",
    "WrongProcess",
    "connect",
    "make_optimizer",
    "settling_time",
    "solve_dense",
    "solve_direct",
    "solve_woodbury",
    "stack",
]

_NAMES = {
    "host_client.blocking": "Feed Session Spu Upload connect",
    "host_client.curvature": """
        Capture CurvatureApproximation CurvatureFallback CurvatureMismatch CurvatureTooLarge PerSampleLoss
        UnsupportedCriterion UnsupportedLayer UnsupportedProcessGroup
    """,
    "host_client.loop": "NoOlderThan TooStale",
    "host_client.optimizers": "KFAC NGD TNGD Diverged LevenbergMarquardt LineSearch make_optimizer",
    "host_client.record": "RunRecord",
    "host_client.solvers": "ConjugateGradients settling_time solve_dense solve_direct solve_woodbury",
    "spu_link.errors": """
        CapacityExceeded Clipped ClockMismatch DeadlineExceeded DeviceBusy DeviceFault DeviceHalted DeviceUnavailable
        EpochMismatch InvalidProgram NoProgram OperatorGone Persistent ProtocolError ReadInPast Retryable SessionClosed
        SessionExpired SessionRequired SpuError StaleSession UnknownRole Unsupported UnsupportedBlock UploadCorrupt
        WrongProcess
    """,
    "spu_link.operators": """
        Conv2dRows Dense EmbeddingRows FactorOperator Kept LayerRows LinearRows Operator Rows stack
    """,
}
"""Names by the module that `__getattr__` imports them from; type checkers read the imports above instead."""

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
