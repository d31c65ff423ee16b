"""The messages of a call that uploads: header, chunks and trailer, each in its place."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Generic, Literal, Protocol, TypeVar

from spu_link import wire
from spu_link.errors import ProtocolError, UploadCorrupt
from spu_server.memory import SharedBytes
from spu_server.sessions import Sessions
from tngd.spu.v1 import spu_pb2 as pb

HEADER_SECONDS = 10.0
"""Longest wait for an upload's header."""

DRAIN_SECONDS = 1.0
"""Longest silence of a client that is still sending an upload which has been refused."""

ADMITTED = (("admitted", "1"),)
"""Initial metadata: the header is accepted."""

Part = Literal["header", "chunk", "trailer"]
PARTS: tuple[Part, ...] = ("header", "chunk", "trailer")


class Request(Protocol):
    """A message with parts."""

    @property
    def chunk(self) -> pb.Chunk:
        """Bytes."""

    def HasField(self, field_name: Part, /) -> bool:
        """Return whether it has a part."""


R = TypeVar("R", bound=Request)


class Incoming(Generic[R]):
    """Receives the parts of one call.

    Args:
        requests: the call's messages.
        sessions: who may.

    Attributes:
        parts: those received and not yet taken, each with the message it came in.
        ended: whether the trailer has been taken.
    """

    def __init__(self, requests: AsyncIterator[R], sessions: Sessions) -> None:
        self.parts: deque[tuple[str, R]] = deque()
        self.ended = False
        self._requests = requests
        self._sessions = sessions

    async def next(self, expected: str, session: pb.SessionRef | None = None) -> tuple[str, R]:
        """The next part, and the message it came in.

        Args:
            expected: names of the parts that may come.
            session: the session that it belongs to, once that is known; a part is a call of it and renews it. A client
                may fall silent between two parts, for instance while it differentiates, as long as its session lives.

        Raises:
            ProtocolError: when another part comes.
            UploadCorrupt: when none does.
        """
        timeout = HEADER_SECONDS if session is None else self._sessions.check(session)
        if not self.parts:
            request = await self._message(expected, timeout, session)
            self.parts.extend((part, request) for part in PARTS if request.HasField(part))
            if not self.parts:
                self.parts.append(("nothing", request))
        part, request = self.parts.popleft()
        self.ended = part == "trailer"
        if part not in expected:
            raise ProtocolError(
                f"the upload has {part} where a {expected} should come", field="part", found=part, expected=expected
            )
        return part, request

    async def chunks(self, session: pb.SessionRef, file: SharedBytes) -> tuple[wire.Assembler, R]:
        """Store all chunks; what has put them together, and the message with the trailer.

        Raises:
            UploadCorrupt: when a chunk is not where it must be.
        """
        assembler = wire.Assembler(file.nbytes, file.write)
        while True:
            part, request = await self.next("chunk or trailer", session)
            if part == "trailer":
                return assembler, request
            assembler.add(request.chunk)

    async def drain(self, nbytes: int) -> None:
        """Receive what is still being sent, and drop it: a status that meets a message on its way is lost in grpc."""
        with suppress(UploadCorrupt):
            while nbytes > 0 and not self.ended:
                request = await self._message("end", DRAIN_SECONDS, None)
                nbytes -= max(len(request.chunk.data), 1)
                self.ended = request.HasField("trailer")

    async def _message(self, expected: str, timeout: float, session: pb.SessionRef | None) -> R:
        loop = asyncio.get_running_loop()

        def wait_on() -> None:
            """Shortly before the limit: who has a living session has as much time again."""
            if session is not None and self._sessions.lives(session):
                limit.reschedule(loop.time() + timeout)
                watches.append(loop.call_later(0.9 * timeout, wait_on))

        watches = [loop.call_later(0.9 * timeout, wait_on)]
        try:
            async with asyncio.timeout(timeout) as limit:
                request = await anext(self._requests, None)
        except TimeoutError:
            raise UploadCorrupt(
                f"no {expected} came for {timeout:g} s; nothing has changed, send again",
                field="part",
                found="silence",
                expected=expected,
            ) from None
        finally:
            watches[-1].cancel()
        if request is None:
            raise UploadCorrupt(
                f"the upload ended where a {expected} should come; nothing has changed, send again",
                field="part",
                found="end of stream",
                expected=expected,
            )
        return request
