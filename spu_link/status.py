"""Errors as gRPC statuses and back, by google.rpc error details."""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from spu_link import errors

DOMAIN = "spu.tngd"

SYSTEM_WORDS = frozenset(map(os.strerror, errno.errorcode))
"""Everything that the system says about a connection that fails."""

log = logging.getLogger(__name__)


def to_status(error: errors.SpuError) -> status_pb2.Status:
    """Status of an error: its code and message, and ErrorInfo, BadRequest and RetryInfo where they apply."""
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=shorten(error.message, 1500))
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason(),
            domain=DOMAIN,
            metadata={
                "field": shorten(error.field, 300),
                "found": shorten(error.found, 300),
                "expected": shorten(error.expected, 300),
            },
        )
    ]
    if isinstance(error, errors.InvalidProgram):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=shorten(error.field, 300), description=shorten(error.message, 300)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.DeviceBusy):
        delay = duration_pb2.Duration(nanos=int(error.retry_after * 1e9) % 10**9, seconds=int(error.retry_after))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def shorten(text: str, max_bytes: int) -> str:
    """Return beginning and end of a text longer than `max_bytes`: a status shares 8 KiB with all its details."""
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return text
    half = max_bytes // 2 - 4
    return f"{data[:half].decode('utf-8', 'ignore')} … {data[-half:].decode('utf-8', 'ignore')}"


def from_rpc_error(error: grpc.RpcError, *, call: str, address: str) -> errors.SpuError:
    """The error behind a failed call; statuses that no daemon of ours made become the nearest class.

    Args:
        error: what grpc raised; it carries code, details and trailing metadata.
        call: name of the call, for the message.
        address: where the call went, for the message.
    """
    code: grpc.StatusCode = error.code()
    status = rpc_status.from_call(error)
    for packed in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info) and info.domain == DOMAIN and info.reason in errors.BY_REASON:
            original = errors.BY_REASON[info.reason](
                status.message,
                field=info.metadata["field"],
                found=info.metadata["found"],
                expected=info.metadata["expected"],
            )
            if isinstance(original, errors.DeviceBusy):
                original.retry_after = _retry_after(status)
            return original
    log.debug("%s: %s: %s", call, code.name, error.details())
    reason = _reason(error.details() or "")
    because = f" ({reason})" if reason else ""
    if code == grpc.StatusCode.UNAVAILABLE:
        command = f"spu-server serve --listen {shlex.quote(address)}"
        return errors.DeviceUnavailable(
            f"{call}: no SPU daemon answers at {address}{because}; is `{command}` running?",
            field="address",
            found=address,
            expected="the address of a running daemon",
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(f"{call}: {address} did not answer within the deadline")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return errors.SpuError(
            f"{call}: {address} does not know this call{because}; what listens there is no SPU daemon, or one of "
            "another version: update the older one of client and daemon",
            field="address",
            found=address,
            expected="the address of a running daemon",
        )
    if code == grpc.StatusCode.CANCELLED:
        return errors.SpuError(f"{call}: the call to {address} was cancelled{because}; call again")
    return errors.SpuError(
        f"{call}: the call to {address} failed{because}; check that nothing else listens there, and that client and "
        "daemon are of the same version",
        field="address",
        found=address,
    )


def _reason(details: str) -> str:
    """The system's own words in what gRPC says, as in "last error: UNKNOWN: ipv4:…: Connection refused (111)"."""
    if "resol" in details:
        return "its host name cannot be resolved"
    words = re.sub(r"\s*\(\d+\)$", "", details.rpartition(":")[2].strip())
    return words if words in SYSTEM_WORDS else ""


def _retry_after(status: status_pb2.Status) -> float:
    for packed in status.details:
        retry = error_details_pb2.RetryInfo()
        if packed.Unpack(retry):
            return float(retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9)
    return 0.0
