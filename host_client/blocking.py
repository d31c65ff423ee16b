"""The blocking API: the asynchronous one, run on an event loop in a thread of its own.

The loop keeps sessions alive while the caller computes, and the calls may be made from any thread, also from code that
runs an event loop itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Self, TypeVar

from host_client import aio
from host_client.clock import ClockAgreement
from host_client.links.base import Capacity, Info
from spu_link.device_time import DeviceTime
from spu_link.operators import Operator
from spu_link.operators.base import ArrayLike
from spu_link.precision import Precision
from spu_link.program import Applied, Reading, StartPolicy

T = TypeVar("T")


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="spu-client", daemon=True).start()
    return loop


def _wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on the client's loop. Every coroutine here has a deadline; an interrupt of the caller cancels it."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def connect(address: str, *, timeout: float = 60.0, **device: Any) -> Spu:
    """Connect to a device.

    Args:
        address: ``unix:PATH`` or ``HOST:PORT`` of a daemon, or ``inproc:`` for an emulator in this process.
        timeout: deadline of every call, in seconds of wall time, on top of the device time that a call waits for.
        device: options of an ``inproc:`` device: ``driver``, ``clock``, ``rate``, ``tau``, ``seed``, ``cells``,
            ``max_bytes``, ``compute``, ``record``, as of ``spu-server serve``.

    Raises:
        DeviceUnavailable: when no daemon answers there.
    """
    return Spu(_wait(aio.connect(address, timeout=timeout, **device)))


class Spu:
    """A connection to one device. Made by `connect`."""

    def __init__(self, connection: aio.Spu) -> None:
        self._connection = connection

    @property
    def address(self) -> str:
        """Where the connection leads."""
        return self._connection.address

    @property
    def info(self) -> Info:
        """What the device is and how it stands now."""
        return _wait(self._connection.info())

    def halt(self, reason: str = "") -> float:
        """Stop the device at once, whoever holds it; the device time of the halt, in τ."""
        return _wait(self._connection.halt(reason))

    @contextmanager
    def session(self, *, ttl: float = 10.0, holder: str | None = None) -> Iterator[Session]:
        """Take the device exclusively for the length of a ``with`` block.

        Args:
            ttl: seconds after which the device is free again if this process stops answering.
            holder: name shown to others; default ``user@host:pid``.

        Raises:
            DeviceBusy: while another session lives.
        """
        session = self.open_session(ttl=ttl, holder=holder)
        try:
            yield session
        finally:
            session.close()

    def open_session(self, *, ttl: float = 10.0, holder: str | None = None) -> Session:
        """Take the device until `Session.close`.

        Raises:
            DeviceBusy: while another session lives.
        """
        return Session(self, _wait(self._connection.open_session(ttl=ttl, holder=holder)))

    def close(self) -> None:
        """Let go of the connection; sessions still open end with their time to live."""
        _wait(self._connection.close())

    def __enter__(self) -> Self:
        """The connection itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()


class Session:
    """Exclusive use of a device, kept alive by a heartbeat. Made by `Spu.session`.

    Attributes:
        spu: the connection.
    """

    def __init__(self, spu: Spu, session: aio.Session) -> None:
        self.spu = spu
        self._session = session

    @property
    def capacity(self) -> Capacity:
        """What the device can hold."""
        return self._session.spu.capacity

    @property
    def uploaded_bytes(self) -> int:
        """Bytes of tensors uploaded so far."""
        return self._session.uploaded_bytes

    @property
    def bytes_by_path(self) -> Mapping[str, int]:
        """Bytes of tensors uploaded so far, by how they went: ``"shared-memory"``, ``"grpc"``, ``"in-process"``."""
        return self._session.bytes_by_path

    @property
    def device_time(self) -> DeviceTime:
        """Newest device time known from the device's answers, in τ."""
        return self._session.device_time

    @property
    def clock(self) -> ClockAgreement:
        """Agreement of the host's clock with device time; the heartbeat keeps it fresh."""
        return self._session.clock

    def program(
        self,
        operator: Operator,
        drive: ArrayLike,
        *,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        precision: Precision | None = None,
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> Applied:
        """Upload a program; returns when it has taken hold. See `host_client.aio.Session.program`."""
        return _wait(
            self._session.program(
                operator,
                drive,
                damping=damping,
                noise=noise,
                start=start,
                precision=precision,
                not_before=not_before,
                timeout=timeout,
            )
        )

    def solve(
        self,
        operator: Operator,
        drive: ArrayLike,
        *,
        analog_time: float,
        damping: float = 0.0,
        noise: float = 0.0,
        start: StartPolicy | ArrayLike = "keep",
        precision: Precision | None = None,
        window: float = 0.0,
        not_before: float | None = None,
        timeout: float | None = None,
    ) -> Reading:
        """Program, evolve for `analog_time` τ, read: (F + λI)⁻¹ b. See `host_client.aio.Session.solve`."""
        return _wait(
            self._session.solve(
                operator,
                drive,
                analog_time=analog_time,
                damping=damping,
                noise=noise,
                start=start,
                precision=precision,
                window=window,
                not_before=not_before,
                timeout=timeout,
            )
        )

    def upload(self, operator: Operator, *, precision: Precision | None = None) -> Upload:
        """Begin to upload a program whose operator is known before the rest. See `host_client.aio.Session.upload`."""

        async def begin() -> aio.Upload:
            return self._session.upload(operator, precision=precision)

        return Upload(_wait(begin()))

    def advance(self, duration: float, *, timeout: float | None = None) -> float:
        """Move a stepped clock by `duration` τ; the new device time. See `host_client.aio.Session.advance`."""
        return _wait(self._session.advance(duration, timeout=timeout))

    def read(self, at: float | None = None, window: float = 0.0, *, timeout: float | None = None) -> Reading:
        """Measure the state at device time `at`, or now. See `host_client.aio.Session.read`."""
        return _wait(self._session.read(at, window, timeout=timeout))

    def close(self) -> None:
        """Give the device back."""
        _wait(self._session.close())


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
        return _wait(
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
        return _wait(
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
        _wait(self._upload.abandon())

    def __enter__(self) -> Self:
        """The upload itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Abandon what has not been finished."""
        self.abandon()
