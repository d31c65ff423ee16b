"""The blocking API: the asynchronous one, run on an event loop in a thread of its own.

The loop keeps sessions alive while the caller computes, and the calls may be made from any thread, also from code that
runs an event loop itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Self, TypeVar

from torch import Tensor

from host_client import aio
from host_client.clock import ClockAgreement
from host_client.links.base import Capacity, Info
from host_client.loop import Freshness, OnLoss
from host_client.loop import feed as aio_feed
from host_client.record.events import Event
from spu_link.device_time import DeviceTime
from spu_link.errors import SpuError
from spu_link.operators import Operator
from spu_link.operators.base import ArrayLike
from spu_link.precision import Precision
from spu_link.program import Applied, Reading, Restored, StartPolicy

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
    def rate(self) -> float:
        """τ per second of wall time; 0 on a stepped clock."""
        return self._connection.rate

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what the device can do."""
        return self._connection.features

    @property
    def at_connect(self) -> Info:
        """What the device was when the connection was made, or made anew; asks nobody."""
        return self._connection.at_connect

    @property
    def info(self) -> Info:
        """What the device is and how it stands now."""
        return _wait(self._connection.info())

    def report(self) -> dict[str, float]:
        """What has happened on the device since its driver was opened, in named numbers; empty where it counts nothing.

        Of the driver ``analog``: values clipped by converters and rails, modelled seconds and joules.
        """
        return _wait(self._connection.report())

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

    @property
    def epoch(self) -> int:
        """Run of the daemon that the session belongs to; device times of two epochs never compare."""
        return self._session.epoch

    def feed(
        self,
        *,
        on_loss: OnLoss = "raise",
        record: Callable[[Event], None] | None = None,
        counts: Counter[str] | None = None,
    ) -> Feed:
        """Feed the device in the background. See `host_client.aio.Session.feed`."""

        async def make() -> aio_feed.Feed:
            return self._session.feed(on_loss=on_loss, record=record, counts=counts)

        return Feed(_wait(make()))

    def save_state(self, *, timeout: float | None = None) -> bytes:
        """The device's whole state; nothing moves. See `host_client.aio.Session.save_state`."""
        return _wait(self._session.save_state(timeout=timeout))

    def restore_state(self, state: bytes, *, timeout: float | None = None) -> Restored:
        """Let a saved state take hold and go on from there. See `host_client.aio.Session.restore_state`."""
        return _wait(self._session.restore_state(state, timeout=timeout))

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


class Feed:
    """Programs to a device in the background, and its readings back. Made by `Session.feed`.

    See `host_client.loop.feed.Feed`.
    """

    def __init__(self, feed: aio_feed.Feed) -> None:
        self._feed = feed

    @property
    def counts(self) -> Mapping[str, int]:
        """What happened how often."""
        return self._feed.counts

    @property
    def lost(self) -> SpuError | None:
        """Why there is no device now; None while there is."""
        return self._feed.lost

    @property
    def free_from(self) -> float | None:
        """Device time at which the last program has run its schedule, in τ; None before the first."""
        return self._feed.free_from

    def begin(self, operator: Operator, precision: Precision | None, *, copied: bool) -> None:
        """Send an operator ahead of the rest, if nothing else is under way."""

        async def begin() -> None:
            self._feed.begin(operator, precision, copied=copied)

        _wait(begin())

    def abandon(self) -> None:
        """No hand-over will follow for what has been sent ahead."""

        async def abandon() -> None:
            self._feed.abandon()

        _wait(abandon())

    def exchange(
        self, operator: Operator, drive: Tensor, *, freshness: Freshness, timeout: float, **options: Any
    ) -> list[aio_feed.Arrived]:
        """Hand a program over, and take the readings for a step, waiting `timeout` seconds at most.

        Args:
            operator, drive, options: as of `host_client.loop.feed.Feed.hand_over`.
            freshness: which readings will do.
            timeout: longest wait, in seconds.

        Raises:
            TooStale: when none came in time that will do.
            SpuError: why the device is lost, or has refused a program.
        """

        async def exchange() -> list[aio_feed.Arrived]:
            number = self._feed.hand_over(operator, drive, **options)
            return await self._feed.readings(number, freshness, timeout=timeout)

        return _wait(exchange())

    def back(self, timeout: float) -> None:
        """Wait until the device is there again, `timeout` seconds at most.

        Raises:
            SpuError: why it is lost.
        """
        _wait(self._feed.back(timeout))

    def resume(self, free_from: float, operator: Operator | None, sequence: int) -> None:
        """The device's state has been restored. See `host_client.loop.feed.Feed.resume`."""

        async def resume() -> None:
            self._feed.resume(free_from, operator, sequence)

        _wait(resume())

    def close(self) -> None:
        """Break off whatever is under way."""
        _wait(self._feed.close())
