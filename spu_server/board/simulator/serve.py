"""The simulator's line: one host at a time, over TCP or a pseudo-terminal."""

from __future__ import annotations

import asyncio
import itertools
import os
import tty
from collections.abc import Callable
from contextlib import suppress

from spu_server.board.simulator.cells import SimulatedBoard
from spu_server.board.simulator.faults import BadLine, LineFaults
from spu_server.board.target import BoardEndpoint


class _Line(asyncio.Protocol):
    """Both ways of one line, with its faults, and the board's end of the protocol behind it."""

    def __init__(self, target: BoardEndpoint, faults: LineFaults, seed: int) -> None:
        self._target = target
        self._latency = faults.latency
        self._to_board, self._to_host = BadLine(faults, 2 * seed), BadLine(faults, 2 * seed + 1)
        self.send: Callable[[bytes], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.send = transport.write

    def data_received(self, data: bytes) -> None:
        self._later(self._arrive, self._to_board.pass_through(data))

    def _arrive(self, data: bytes) -> None:
        self._later(self.send, self._to_host.pass_through(self._target.receive(data)))

    def _later(self, function: Callable[[bytes], None], data: bytes) -> None:
        if not data:
            return
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency / 2, function, data)
        else:
            function(data)


async def serve_tcp(
    board: SimulatedBoard, faults: LineFaults, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve for ever; `ready` is called with the address."""
    target, seeds = BoardEndpoint(board), itertools.count()
    server = await asyncio.get_running_loop().create_server(lambda: _Line(target, faults, next(seeds)), host, port)
    ready(f"tcp:{host}:{server.sockets[0].getsockname()[1]}")
    async with server:
        await server.serve_forever()


async def serve_pty(board: SimulatedBoard, faults: LineFaults, ready: Callable[[str], None]) -> None:
    """Serve a pseudo-terminal for ever; `ready` is called with its address."""
    ours, theirs = os.openpty()  # theirs stays open, so that hosts may come and go
    tty.setraw(theirs)
    os.set_blocking(ours, False)
    line = _Line(BoardEndpoint(board), faults, 0)
    line.send = lambda data: _write(ours, data)
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, lambda: line.data_received(os.read(ours, 4096)))
    ready(f"serial:{os.ttyname(theirs)}")
    try:
        await asyncio.Event().wait()
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)


def _write(descriptor: int, data: bytes) -> None:
    """Nobody may be reading: a full line loses what no longer fits, as a serial line does."""
    with suppress(BlockingIOError):
        os.write(descriptor, data)
