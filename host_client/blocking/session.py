"""Exclusive use of a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from host_client import aio
from host_client.blocking.feed import Feed
from host_client.blocking.thread import wait
from host_client.blocking.upload import Upload
from host_client.clock import ClockAgreement
from host_client.links.base import Capacity
from host_client.loop import OnLoss
from host_client.loop import feed as aio_feed
from host_client.record.events import Event
from spu_link.device_time import DeviceTime
from spu_link.operators import Operator
from spu_link.operators.base import ArrayLike
from spu_link.precision import Precision
from spu_link.program import Applied, Reading, Restored, StartPolicy

if TYPE_CHECKING:
    from host_client.blocking.spu import Spu
    from host_client.embeddings import Embedding


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
        return self._session.capacity

    @property
    def embedding(self) -> Embedding | None:
        """How systems are cut for devices with fewer cells than parameters; None for a cell for each parameter."""
        return self._session.embedding

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
        return wait(
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
        return wait(
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

        return Upload(wait(begin()))

    def advance(self, duration: float, *, timeout: float | None = None) -> float:
        """Move a stepped clock by `duration` τ; the new device time. See `host_client.aio.Session.advance`."""
        return wait(self._session.advance(duration, timeout=timeout))

    def read(self, at: float | None = None, window: float = 0.0, *, timeout: float | None = None) -> Reading:
        """Measure the state at device time `at`, or now. See `host_client.aio.Session.read`."""
        return wait(self._session.read(at, window, timeout=timeout))

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

        return Feed(wait(make()))

    def save_state(self, *, timeout: float | None = None) -> bytes:
        """The device's whole state; nothing moves. See `host_client.aio.Session.save_state`."""
        return wait(self._session.save_state(timeout=timeout))

    def restore_state(self, state: bytes, *, timeout: float | None = None) -> Restored:
        """Let a saved state take hold and go on from there. See `host_client.aio.Session.restore_state`."""
        return wait(self._session.restore_state(state, timeout=timeout))

    def close(self) -> None:
        """Give the device back."""
        wait(self._session.close())
