"""Every error survives the way through a gRPC status, and through a pickle."""

import pickle

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from spu_link import errors
from spu_link.errors import BY_REASON, DeviceBusy, InvalidProgram, Persistent, Retryable, SpuError
from spu_link.status import from_rpc_error, to_status

CODES = {code.value[0]: code for code in grpc.StatusCode}
METADATA_BYTES = 8 << 10
"""Soft limit of grpc for all trailing metadata of a call."""


class Failed(grpc.RpcError):
    """Error that grpc raises at the client for a status."""

    def __init__(self, code, details, metadata=()):
        self._code, self._details, self._metadata = code, details, metadata

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._metadata


def travelled(error):
    status = to_status(error)
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    return from_rpc_error(Failed(CODES[status.code], status.message, details), call="Read", address="unix:/s")


@pytest.mark.parametrize("cls", BY_REASON.values(), ids=lambda cls: cls.__name__)
def test_an_error_keeps_its_class_message_and_fields(cls):
    error = cls("it went wrong at 3 τ", field="at", found=3.0, expected="at least 5 τ")
    if isinstance(error, DeviceBusy):
        error.retry_after = 2.5
    for copy in (travelled(error), pickle.loads(pickle.dumps(error))):
        assert type(copy) is cls
        assert str(copy) == copy.message == "it went wrong at 3 τ"
        assert (copy.field, copy.found, copy.expected) == ("at", "3.0", "at least 5 τ")
        assert getattr(copy, "retry_after", None) == getattr(error, "retry_after", None)


@pytest.mark.parametrize("cls", BY_REASON.values(), ids=lambda cls: cls.__name__)
def test_every_class_has_a_canonical_code_and_says_whether_to_try_again(cls):
    assert cls.code in grpc.StatusCode.__members__
    assert cls.reason() == cls.reason().upper()
    assert cls in (SpuError, Retryable, Persistent) or issubclass(cls, Retryable) != issubclass(cls, Persistent)
    assert cls.__doc__


def test_reasons_are_unique_and_readable():
    assert BY_REASON["DEVICE_BUSY"] is DeviceBusy
    assert len(BY_REASON) == len(set(BY_REASON.values()))
    assert all(getattr(errors, cls.__name__) is cls for cls in BY_REASON.values())


@given(seconds=st.floats(0.0, 3600.0))
def test_a_busy_device_reports_its_time_to_the_nanosecond(seconds):
    assert travelled(DeviceBusy("busy", retry_after=seconds)).retry_after == pytest.approx(seconds, abs=2e-9)


@given(message=st.text(max_size=5000), found=st.text(max_size=5000), expected=st.text(max_size=5000))
def test_no_error_is_too_long_to_travel(message, found, expected):
    error = InvalidProgram(message, field="start", found=found, expected=expected)
    status = to_status(error)
    as_ascii = sum(1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3 for byte in status.message.encode())
    assert as_ascii + status.ByteSize() * 4 / 3 + 100 < METADATA_BYTES
    if len(message.encode("utf-8", "replace")) <= 1500:
        assert travelled(error).message == message


def test_a_long_message_keeps_its_beginning_and_its_end():
    message = travelled(InvalidProgram("begin " + "x" * 10_000 + " end")).message
    assert message.startswith("begin x")
    assert message.endswith("x end")


def test_an_invalid_argument_names_its_field_for_other_languages_too():
    status = to_status(InvalidProgram("damping is -1", field="damping"))
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert bad.field_violations[0].field == "damping"


@pytest.mark.parametrize(
    ("code", "cls", "match"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.DeviceUnavailable, "spu-server serve --listen unix:/s"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded, "deadline"),
        (grpc.StatusCode.UNIMPLEMENTED, SpuError, "no SPU daemon"),
        (grpc.StatusCode.CANCELLED, SpuError, "cancelled"),
        (grpc.StatusCode.INTERNAL, SpuError, "check that nothing else listens there"),
        (grpc.StatusCode.FAILED_PRECONDITION, SpuError, "check that nothing else listens there"),
    ],
)
def test_statuses_of_others_become_the_nearest_error(code, cls, match):
    error = from_rpc_error(Failed(code, "no connection"), call="Read", address="unix:/s")
    assert type(error) is cls
    assert match in str(error)
    assert "Read" in str(error)
    assert code.name not in str(error)
    assert "no connection" not in str(error)


def test_an_error_of_another_domain_is_not_taken_for_one_of_ours():
    status = to_status(DeviceBusy("busy"))
    info = error_details_pb2.ErrorInfo(reason="DEVICE_BUSY", domain="example.org")
    status.details[0].Pack(info)
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    error = from_rpc_error(Failed(CODES[status.code], "busy", details), call="Read", address="unix:/s")
    assert type(error) is SpuError


def test_every_invalid_program_is_a_value_error():
    assert issubclass(InvalidProgram, ValueError)
