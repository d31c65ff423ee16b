"""A client that speaks the protocol by hand, and so can say what the public API never would."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import google_crc32c
import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from spu_link import wire
from spu_link.errors import SpuError
from spu_link.program import Program
from spu_link.status import from_rpc_error
from tngd.spu.v1 import spu_pb2 as pb
from tngd.spu.v1 import spu_pb2_grpc

SECONDS = 20.0
"""Deadline of every call: a device that does not answer fails the test instead of hanging it."""


class Raw:
    """A channel of its own and, if asked for, a session that nothing keeps alive but calls."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = spu_pb2_grpc.SpuServiceStub(self.channel)
        self.session = pb.SessionRef()

    def open(self, ttl: float = 30.0) -> pb.SessionRef:
        self.session = self.stub.OpenSession(pb.OpenSessionRequest(holder="raw", ttl=ttl), timeout=SECONDS).session
        return self.session

    def info(self) -> pb.GetInfoResponse:
        return self.stub.GetInfo(pb.GetInfoRequest(), timeout=SECONDS)

    def upload(self, header: pb.ProgramHeader, data: bytes) -> list[pb.ProgramResponse]:
        return self.send(self.messages(header, data))

    def messages(self, header: pb.ProgramHeader, data: bytes, size: int = 64) -> list[pb.ProgramRequest]:
        """A correct upload in this session, in small chunks."""
        header.session.CopyFrom(self.session)
        pieces = wire.numbered(wire.chunks([memoryview(data)], size))
        return [
            pb.ProgramRequest(header=header),
            *(pb.ProgramRequest(chunk=piece) for piece in pieces),
            pb.ProgramRequest(trailer=pb.ProgramTrailer(crc32c=google_crc32c.value(data))),
        ]

    def send(self, requests: Iterable[pb.ProgramRequest]) -> list[pb.ProgramResponse]:
        return list(self.stub.Program(iter(requests), timeout=SECONDS))

    def read(self, **fields: Any) -> list[pb.ReadResponse]:
        return list(self.stub.Read(pb.ReadRequest(session=self.session, **fields), timeout=SECONDS))

    def advance(self, duration: float) -> float:
        return self.stub.Advance(pb.AdvanceRequest(session=self.session, duration=duration), timeout=SECONDS).time

    def renew(self) -> None:
        self.stub.RenewSession(pb.RenewSessionRequest(session=self.session), timeout=SECONDS)

    def wait_until_free(self) -> None:
        eventually(lambda: not self.info().session_held, "the device is free")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.session.id:
            with suppress(grpc.RpcError):  # the daemon may be gone
                self.stub.CloseSession(pb.CloseSessionRequest(session=self.session), timeout=SECONDS)
        self.channel.close()


def encoded(program: Program) -> tuple[pb.ProgramHeader, bytes]:
    """Header of a program, without session, and its bytes."""
    header, tensors = wire.header_of(program)
    return header, b"".join(wire.byte_views(tensors))


@contextmanager
def refused(error: type[SpuError], match: str = "") -> Iterator[pytest.ExceptionInfo[grpc.RpcError]]:
    """The call inside fails with the status code and the reason of a class, which is what the client makes of it."""
    with pytest.raises(grpc.RpcError) as caught:
        yield caught
    status = rpc_status.from_call(caught.value)
    assert status is not None, f"{caught.value.code()} without details: {caught.value.details()}"
    assert caught.value.code().name == error.code
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (error.reason(), "spu.tngd")
    raised = from_rpc_error(caught.value, call="test", address="here")
    assert type(raised) is error
    assert match in raised.message, raised.message


def eventually(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for a condition that nothing announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
