"""Saved states on their way from and to a daemon, in chunks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import google_crc32c
import grpc

from host_client.links.responses import errors, next_of
from spu_link import wire
from spu_link.program import Restored
from tngd.spu.v1 import spu_pb2 as pb

SaveCall: TypeAlias = "grpc.aio.UnaryStreamCall[pb.SaveStateRequest, pb.SaveStateResponse]"
RestoreCall: TypeAlias = "grpc.aio.StreamUnaryCall[pb.RestoreStateRequest, pb.RestoreStateResponse]"


async def saved(call: SaveCall, address: str) -> bytes:
    """The state that a call brings.

    Raises:
        UploadCorrupt: when the bytes are not those that were sent.
    """
    with errors(address, "SaveState"), _ended(call):
        buffer = bytearray((await next_of(call.read, address)).header.nbytes)
        assembler = wire.Assembler(len(buffer), wire.writer(buffer))
        while True:
            response = await next_of(call.read, address)
            if response.HasField("trailer"):
                break
            assembler.add(response.chunk)
        assembler.finish(response.trailer.crc32c)
        return bytes(buffer)


async def restored(call: RestoreCall, address: str, session: pb.SessionRef, state: bytes) -> Restored:
    """What the daemon makes of a state.

    The first chunk follows when the daemon has admitted the header: a refusal that comes while grpc writes is lost.
    """
    with errors(address, "RestoreState"), _ended(call):
        header = pb.StateHeader(session=session, nbytes=len(state))
        await _send(call, pb.RestoreStateRequest(header=header))
        if any(key == "admitted" for key, _ in await call.initial_metadata()):
            for chunk in wire.numbered(wire.chunks([memoryview(state)])):
                await _send(call, pb.RestoreStateRequest(chunk=chunk))
            trailer = pb.StateTrailer(crc32c=google_crc32c.value(state))
            await _send(call, pb.RestoreStateRequest(trailer=trailer))
        answer = await call
        return Restored(answer.time, answer.shift, answer.sequence, answer.epoch)


@contextmanager
def _ended(call: SaveCall | RestoreCall) -> Iterator[None]:
    """Nobody waits for the call after the block."""
    try:
        yield
    finally:
        call.cancel()  # no error where it has ended


async def _send(call: RestoreCall, request: Any) -> None:
    try:
        await call.write(request)
    except asyncio.InvalidStateError:  # the daemon has ended the call; its status says why
        await call
