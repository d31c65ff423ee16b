"""A program on its way to a device."""

from __future__ import annotations

from typing import Self

from host_client import aio
from host_client.blocking.thread import wait
from spu_link.operators import Operator
from spu_link.operators.base import ArrayLike
from spu_link.program import Applied, Reading, StartPolicy


class Upload:
    """A program on its way: the operator first, then the rest. Made by `Session.upload`; see `host_client.aio.Upload`.

    Bytes go in the background. One call of `program`, `solve` or `abandon` ends it, or the end of a ``with`` block.
    """

    def __init__(self, upload: aio.Upload) -> None:
        self._upload = upload

    @property
    def operator(self) -> Operator:
        """F."""
        return self._upload.operator

    @property
    def sent_bytes(self) -> int:
        """Bytes of tensors that have left so far."""
        return self._upload.sent_bytes

    def program(
        self,
        drive: ArrayLike,
        *,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> Applied:
        """Send the rest; returns when the program has taken hold."""
        return wait(
            self._upload.program(
                drive, damping=damping, noise=noise, start=start, not_before=not_before, timeout=timeout
            )
        )

    def solve(
        self,
        drive: ArrayLike,
        *,
        analog_time: float,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        window: float = 0.0,
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> Reading:
        """Send the rest, let the device evolve for `analog_time` τ, and read it."""
        return wait(
            self._upload.solve(
                drive,
                analog_time=analog_time,
                damping=damping,
                noise=noise,
                start=start,
                window=window,
                not_before=not_before,
                timeout=timeout,
            )
        )

    def abandon(self) -> None:
        """Break off; the old program goes on."""
        wait(self._upload.abandon())

    def __enter__(self) -> Self:
        """The upload itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Abandon what has not been finished."""
        self.abandon()
