"""One way to one device."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from host_client.capacity import Info
from host_client.clock import Exchange
from host_client.embeddings import Embedding
from host_client.ownership import Owned
from spu_link.device_time import DeviceTime
from spu_link.errors import DeadlineExceeded, SpuError
from tngd.spu.v1 import spu_pb2 as pb

if TYPE_CHECKING:
    from host_client.links.lease import Lease

T = TypeVar("T")

Path: TypeAlias = Literal["shared-memory", "grpc", "in-process"]
"""Path of bytes to a device."""

GOODBYE_SECONDS = 1.0
"""Longest wait to release a device after a call on it has failed already."""


class Link(Owned, ABC):
    """One way to one device. Every call raises an `SpuError` when it fails, and none waits longer than its deadline.

    Attributes:
        address: where it leads.
        timeout: default deadline of every call, in seconds of wall time.
        known: what `info` returned last.
        embedding: how systems are cut for the device; None for a cell for each parameter.
        closed: whether the connection has been closed.
    """

    address: str
    timeout: float = 60.0
    known: Info
    embedding: Embedding | None = None
    closed: bool = False

    async def take(self, holder: str, ttl: float, bytes_by_path: Counter[str], *, timeout: float) -> Lease:
        """Take the device, and compare clocks with it.

        Args:
            holder: name shown to others.
            ttl: seconds after which the device is free again if nobody renews the lease.
            bytes_by_path: counts what is uploaded.
            timeout: deadline in seconds of wall time.

        Raises:
            DeviceBusy: while somebody else holds it.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        lease = await self._take(holder, ttl, bytes_by_path, timeout=timeout)
        try:
            await lease.agree(deadline)
        except BaseException:
            with suppress(SpuError):
                await lease.release(timeout=min(timeout, GOODBYE_SECONDS))
            raise
        return lease

    @abstractmethod
    async def info(self, *, timeout: float) -> Info:
        """Return what the device is and how it stands."""

    @abstractmethod
    async def time(self, *, timeout: float) -> Exchange:
        """Ask for the device's time."""

    @abstractmethod
    async def report(self, *, timeout: float) -> dict[str, float]:
        """Return what has happened on the device since its driver was opened, in named numbers."""

    @abstractmethod
    async def halt(self, reason: str, *, timeout: float) -> float:
        """Stop the device; return the device time of the halt."""

    @abstractmethod
    async def close(self) -> None:
        """Release what the link has open."""

    @abstractmethod
    async def _take(self, holder: str, ttl: float, bytes_by_path: Counter[str], *, timeout: float) -> Lease:
        """Take the device."""


def info_from(message: pb.GetInfoResponse) -> Info:
    """Return the information that a daemon sends."""
    return Info(
        driver=message.driver,
        version=message.version,
        cells=message.cells,
        max_upload_bytes=message.max_upload_bytes,
        tau=message.tau,
        clock="stepped" if message.clock == pb.CLOCK_KIND_STEPPED else "free",
        rate=message.rate,
        time=DeviceTime(message.time, message.epoch),
        epoch=message.epoch,
        sequence=message.sequence,
        state=pb.DeviceState.Name(message.state).removeprefix("DEVICE_STATE_").lower(),
        fault=message.fault,
        session_holder=message.session_holder if message.session_held else None,
        features=tuple(message.features),
        longest_stall=message.longest_stall,
        restarts=message.restarts,
        memory_address=message.memory_address,
        calibrated=message.calibrated if message.HasField("calibrated") else None,
    )


async def until(deadline: float, call: str, awaitable: Awaitable[T]) -> T:
    """Await something that must come by `deadline`, in seconds of the loop's clock.

    Raises:
        DeadlineExceeded: when it does not.
    """
    try:
        async with asyncio.timeout_at(deadline):
            return await awaitable
    except TimeoutError:
        raise DeadlineExceeded(
            f"{call}: the device did not answer within the deadline; call again, or with a larger timeout"
        ) from None


def seconds_left(deadline: float) -> float:
    """Return the seconds until a deadline; a call that is given none of them ends at once."""
    return max(0.0, deadline - asyncio.get_running_loop().time())
