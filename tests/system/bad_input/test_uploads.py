"""An upload that does not arrive as it was sent leaves no trace."""

from __future__ import annotations

import time

import grpc
import pytest

from spu_link.errors import UploadCorrupt
from tests.forked import Forked, script
from tests.pressure import time_enough
from tests.system.bad_input.programs import program
from tests.system.bad_input.uploads import UPLOADS, Silence, begun
from tests.system.device import uploads_in
from tests.system.raw import SECONDS, encoded, eventually, refused


@pytest.mark.parametrize(("change", "error", "match"), UPLOADS.values(), ids=UPLOADS)
def test_a_broken_upload_leaves_no_trace(device, change, error, match):
    with device.raw() as raw:
        parts = raw.messages(*encoded(program()))
        with refused(error, match):
            raw.send(change(parts))
        assert raw.info().sequence == device.sequence
        raw.renew()  # the session goes on


def test_an_upload_that_falls_silent_ends_with_the_time_to_live(device):
    for ttl, attempt in time_enough(0.3, AssertionError):  # it is refused for its session where that ends before
        with attempt, device.raw(ttl) as raw:
            silence = Silence(begun(raw))
            begin = time.monotonic()
            with refused(UploadCorrupt, f"{ttl:g} s"):
                raw.send(silence)
            silence.over.set()
            assert time.monotonic() - begin > 0.8 * ttl


def test_an_upload_that_is_cancelled_leaves_no_trace(device):
    with device.raw() as raw:
        silence = Silence(begun(raw))
        call = raw.stub.Program(iter(silence), timeout=SECONDS)
        eventually(lambda: bool(uploads_in(device.daemon)), "the upload has begun")
        call.cancel()
        silence.over.set()
        with pytest.raises(grpc.RpcError):
            list(call)
        assert call.code() == grpc.StatusCode.CANCELLED
        eventually(lambda: not uploads_in(device.daemon), "the upload is forgotten")
        raw.renew()


def test_an_upload_whose_channel_is_closed_leaves_no_trace(device):
    with device.raw() as owner, device.raw(ttl=None) as raw:
        raw.session.CopyFrom(owner.session)
        silence = Silence(begun(raw))
        call = raw.stub.Program(iter(silence), timeout=SECONDS)
        eventually(lambda: bool(uploads_in(device.daemon)), "the upload has begun")
        raw.channel.close()
        silence.over.set()
        assert call.code() == grpc.StatusCode.CANCELLED
        raw.session.Clear()
        eventually(lambda: not uploads_in(device.daemon), "the upload is forgotten")


UPLOADER = """
import sys
from tests.system.raw import Raw
from tests.system.bad_input.uploads import Silence, begun
raw = Raw(sys.argv[1])
raw.session.ParseFromString(bytes.fromhex(sys.argv[2]))
raw.send(Silence(begun(raw)))
"""


def test_an_upload_whose_client_is_killed_leaves_no_trace(device):
    with device.raw(ttl=120.0) as owner:
        session = owner.session.SerializeToString().hex()
        with Forked(script, UPLOADER, device.address, session) as client:
            eventually(lambda: bool(uploads_in(device.daemon)), "the upload has begun")
            client.kill()
            eventually(lambda: not uploads_in(device.daemon), "the upload is forgotten")


def test_a_message_larger_than_the_protocol_allows_is_refused(device):
    with device.raw() as raw:
        parts = raw.messages(*encoded(program()))
        parts[1].chunk.data = bytes(5 << 20)
        with pytest.raises(grpc.RpcError) as caught:
            raw.send(parts)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
