"""Exclusive use of a device."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from host_client import aio
from host_client.blocking.facade import Facade, waiting
from host_client.blocking.feed import Feed, Listener
from host_client.blocking.thread import follow, wait
from host_client.blocking.upload import Upload
from host_client.clock import ClockAgreement
from host_client.links.base import Capacity
from host_client.loop import OnLoss
from host_client.record.events import Event
from spu_link.device_time import DeviceTime
from spu_link.operators import Operator
from spu_link.precision import Precision

if TYPE_CHECKING:
    from host_client.blocking.spu import Spu
    from host_client.embeddings import Embedding


class Session(Facade[aio.Session]):
    """Exclusive use of a device, kept alive by a heartbeat. Made by `Spu.session`.

    Attributes:
        spu: the connection.
    """

    def __init__(self, spu: Spu, session: aio.Session) -> None:
        super().__init__(session, session.close)
        self.spu = spu

    @property
    def capacity(self) -> Capacity:
        """What the device can hold."""
        return self._aio.capacity

    @property
    def embedding(self) -> Embedding | None:
        """How systems are cut for devices with fewer cells than parameters; None for a cell for each parameter."""
        return self._aio.embedding

    @property
    def uploaded_bytes(self) -> int:
        """Bytes of tensors uploaded so far."""
        return self._aio.uploaded_bytes

    @property
    def bytes_by_path(self) -> Mapping[str, int]:
        """Bytes of tensors uploaded so far, by how they went: ``"shared-memory"``, ``"grpc"``, ``"in-process"``."""
        return self._aio.bytes_by_path

    @property
    def device_time(self) -> DeviceTime:
        """Newest device time known from the device's answers, in τ."""
        return self._aio.device_time

    @property
    def epoch(self) -> int:
        """Run of the daemon that the session belongs to; device times of two epochs never compare."""
        return self._aio.epoch

    @property
    def clock(self) -> ClockAgreement:
        """Agreement of the host's clock with device time; the heartbeat keeps it fresh."""
        return self._aio.clock

    program = waiting(aio.Session.program)
    solve = waiting(aio.Session.solve)
    read = waiting(aio.Session.read)
    advance = waiting(aio.Session.advance)
    save_state = waiting(aio.Session.save_state)
    restore_state = waiting(aio.Session.restore_state)

    def upload(self, operator: Operator, *, precision: Precision | None = None) -> Upload:
        """Begin to upload a program whose operator is known before the rest. See `host_client.aio.Session.upload`."""
        session = self._aio

        async def begin() -> Upload:
            return Upload(session.upload(operator, precision=precision), self)

        follow([operator])
        return wait(begin)

    def feed(
        self,
        *,
        on_loss: OnLoss = "raise",
        record: Callable[[Event], None] | None = None,
        counts: Counter[str] | None = None,
    ) -> Feed:
        """Feed the device in the background. See `host_client.aio.Session.feed`."""
        session, listener = self._aio, None if record is None else Listener(record)
        known = weakref.ref(listener) if listener is not None else lambda: None

        def tell(event: Event) -> None:
            heard = known()
            if heard is not None:
                heard.record(event)

        async def make() -> Feed:
            return Feed(session.feed(on_loss=on_loss, record=tell, counts=counts), self, listener)

        return wait(make)
