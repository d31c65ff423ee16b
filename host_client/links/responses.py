"""Responses of a daemon: readings and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc

from host_client.links.memory import Region
from spu_link import wire
from spu_link.errors import DeviceUnavailable
from spu_link.program import Reading
from spu_link.status import from_rpc_error

Source: TypeAlias = Callable[[], Awaitable[Any]]
"""A call's ``read``; its messages are `ProgramResponse` or `ReadResponse`."""


async def next_of(read: Source, address: str) -> Any:
    """The next message of a call.

    Raises:
        DeviceUnavailable: when there is none.
    """
    response = await read()
    if response is grpc.aio.EOF:
        raise DeviceUnavailable(f"{address} ended the call before its answer was complete")
    return response


async def receive(read: Source, address: str, epoch: int, region: Region | None) -> Reading:
    """Receive one reading of an epoch: its header, and its value in chunks or in the call's region.

    Raises:
        UploadCorrupt: when the bytes are not those that were sent.
    """
    response = await next_of(read, address)
    header = response.reading
    if region is not None and header.HasField("place"):
        value = await region.read(header.value, header.place.offset)
    else:
        buffer = bytearray(wire.nbytes_of(header.value))
        assembler = wire.Assembler(len(buffer), wire.writer(buffer))
        left = len(buffer)
        while True:
            assembler.add(response.chunk)
            left -= len(response.chunk.data)
            if left <= 0:
                break
            response = await next_of(read, address)
        assembler.finish(header.crc32c)
        value = wire.tensor_from(header.value, memoryview(buffer))
    return Reading(value, header.time, header.sequence, header.age, header.window, header.sent, epoch)


@contextmanager
def errors(address: str, call: str) -> Iterator[None]:
    """Raise what the daemon's status says, whenever gRPC reports one inside."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.details() == "Internal error from Core":
            # Of a message that could not be written; a daemon that refuses hears us out first.
            raise DeviceUnavailable(f"{call}: the connection to {address} broke off while bytes were sent") from None
        raise from_rpc_error(error, call=call, address=address) from None
    except grpc.aio.UsageError:
        raise _closed_error(call, address) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _closed_error(call, address) from None  # gRPC cancels the calls of a channel that is closed


def _closed_error(call: str, address: str) -> DeviceUnavailable:
    return DeviceUnavailable(f"{call}: the connection to {address} is closed", field="address", found=address)
