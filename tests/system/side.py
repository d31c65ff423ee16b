"""A client of the memory socket that speaks by hand."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from google.rpc import error_details_pb2, status_pb2

from spu_link.errors import SpuError
from tests.daemon import Daemon
from tests.system.raw import SECONDS, Raw
from tngd.spu.v1 import spu_pb2 as pb

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Refused(Exception):
    """The daemon's answer was a status."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        self.reason = info.reason


class Side:
    """A connection to the memory socket, in the session of a client by hand."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        address = raw.info().memory_address
        assert address.startswith("unix:")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(SECONDS)
        self.socket.connect(address.removeprefix("unix:"))

    def register(self, descriptor: int) -> int:
        request = pb.MemoryRequest(session=self.raw.session, register=pb.MemoryRequest.Register())
        return self.ask(request.SerializeToString(), [descriptor])

    def unregister(self, region: int) -> int:
        unregister = pb.MemoryRequest.Unregister(region=region)
        return self.ask(pb.MemoryRequest(session=self.raw.session, unregister=unregister).SerializeToString())

    def ask(self, packet: bytes, descriptors: Sequence[int] = ()) -> int:
        socket.send_fds(self.socket, [packet], list(descriptors))
        response = pb.MemoryResponse.FromString(self.socket.recv(1 << 16))
        if response.status:
            raise Refused(status_pb2.Status.FromString(response.status))
        return response.region

    def is_closed(self) -> bool:
        """Return whether the daemon has hung up; waits for what it has to say."""
        return self.socket.recv(1 << 16) == b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


@contextmanager
def memory(data: bytes, *, seals: int = SEALS, nbytes: int | None = None) -> Iterator[int]:
    """A memfd of one's own."""
    descriptor = os.memfd_create("spu-test", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, nbytes or len(data))
        os.pwrite(descriptor, data, 0)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def rejected(error: type[SpuError], match: str | None = None) -> Iterator[None]:
    """The memory socket answers with the reason of a class."""
    with pytest.raises(Refused, match=match) as caught:
        yield
    assert caught.value.reason == error.reason()


def shared_in(daemon: Daemon) -> list[str]:
    """Open descriptors of clients' memory in the daemon and its driver."""
    links = []
    for process in daemon.processes():
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                links.append(f"{process.pid} {descriptor.readlink()}")
            except FileNotFoundError:
                continue  # closed meanwhile
    return [link for link in links if "spu-shared" in link or "spu-test" in link]
