"""Whatever a client sends, the device keeps its old program, says what was wrong, and serves the next client."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import psutil
import pytest
import torch

from host_client import aio, connect
from spu_link.errors import (
    CapacityExceeded,
    ClockMismatch,
    DeadlineExceeded,
    DeviceBusy,
    DeviceFault,
    DeviceUnavailable,
    InvalidProgram,
    NoProgram,
    ProtocolError,
    ReadInPast,
    SessionExpired,
    SessionRequired,
    SpuError,
    StaleSession,
    UnknownRole,
    UnsupportedBlock,
    UploadCorrupt,
)
from spu_link.operators import Conv2dRows, Dense, EmbeddingRows, LayerRows, LinearRows, Rows
from spu_link.program import Program
from tests.system.device import CELLS, SteadyDevice, uploads_in
from tests.system.raw import SECONDS, Raw, encoded, eventually, messages, refused
from tngd.spu.v1 import spu_pb2 as pb

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def device(stepped):
    """On a stepped clock. That it is unharmed is seen to after every test."""
    device = SteadyDevice(stepped)
    yield device
    device.assert_unharmed()


@pytest.fixture
def free_device(free):
    """On a free-running clock, likewise."""
    device = SteadyDevice(free)
    yield device
    device.assert_unharmed()


def layers() -> dict[str, LinearRows | Conv2dRows | EmbeddingRows | Rows]:
    """One block of each kind, of two rows each."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "linear": LinearRows(tensor(2, 3), tensor(1, 2, 2), bias=True),
        "conv2d": Conv2dRows(tensor(2, 2, 4, 4), tensor(1, 2, 4, 2, 2), kernel=(3, 3), groups=2, bias=False),
        "rows": Rows(tensor(2, 5)),
        "sequence": LinearRows(tensor(2, 3, 2), tensor(1, 2, 3, 2), bias=False),
        "embedding": EmbeddingRows(torch.tensor([[0, 3], [1, 1]]), tensor(1, 2, 2, 2), embeddings=4),
    }


def program() -> Program:
    """Every role but the dense matrix's."""
    operator = LayerRows(list(layers().values()))
    ones = torch.ones(operator.parameters)
    return Program(operator, ones, damping=0.1, noise=0.1, start=ones.clone())


def dense(n: int = 3) -> Program:
    return Program(Dense(torch.eye(n)), torch.ones(n), damping=0.1)


TENSOR = {
    name: index
    for index, name in enumerate(
        [
            "linear.input",
            "linear.cotangent",
            "conv2d.input",
            "conv2d.cotangent",
            "rows",
            "sequence.input",
            "sequence.cotangent",
            "embedding.indices",
            "embedding.cotangent",
            "drive",
            "start",
        ]
    )
}
"""Places of the tensors of `program` in its header."""


def test_the_untouched_program_is_good(device):
    with device.raw() as raw:
        assert raw.upload(*encoded(program()))[0].applied.sequence == device.sequence + 1
        assert raw.upload(*encoded(dense()))[0].applied.sequence == device.sequence + 2
    device.sequence += 2
    device.__init__(device.daemon)


# Shapes, dtypes, roles, kinds and numbers in the header.


def shape(tensor, *extents):
    return lambda header: header.tensors[TENSOR[tensor]].shape.__setitem__(slice(None), extents)


def spec(tensor, **fields):
    return lambda header: header.tensors[TENSOR[tensor]].MergeFrom(pb.TensorSpec(**fields))


def number(**fields):
    return lambda header: header.MergeFrom(pb.ProgramHeader(**fields))


def conv(field, *values):
    def change(header):
        geometry = header.blocks[1].conv2d
        if field in ("groups", "bias"):
            setattr(geometry, field, *values)
        else:
            getattr(geometry, field)[:] = values

    return change


def codes(*scales, **fields):
    """The rows as codes with these scales."""
    return spec("rows", dtype=pb.DTYPE_INT16, scales=scales, **fields)


def drop(field, index):
    return lambda header: header.__getattribute__(field).__delitem__(index)


def twice(tensor):
    return lambda header: header.tensors.append(header.tensors[TENSOR[tensor]])


def reads(*plans):
    return lambda header: header.reads.extend(pb.ScheduledRead(after=after, window=window) for after, window in plans)


def kind(index, name):
    return lambda header: getattr(header.blocks[index], name).SetInParent()


def no_blocks(header):
    del header.blocks[:]


def no_drive(header):
    del header.tensors[TENSOR["drive"]]


def unknown_kind(header):
    # Field 99 of Block, length-delimited and empty: a kind of a later protocol.
    header.blocks[2].ParseFromString(b"\x9a\x06\x00")


HEADERS = {
    "a drive of another length": (shape("drive", 4), InvalidProgram, "DRIVE"),
    "a drive that is a matrix": (shape("drive", 1, 52), InvalidProgram, "tensors[9].shape"),
    "a start of another length": (shape("start", 51), InvalidProgram, "START"),
    "an empty extent": (shape("rows", 2, 0), InvalidProgram, "tensors[4].shape"),
    "no extents": (shape("rows"), InvalidProgram, "tensors[4].shape"),
    "rows with another number of rows": (shape("rows", 3, 5), InvalidProgram, "blocks[2]"),
    "linear cotangents of other samples": (shape("linear.cotangent", 1, 3, 2), InvalidProgram, "linear.cotangent"),
    "linear inputs with four dimensions": (shape("linear.input", 2, 3, 1, 1), InvalidProgram, "tensors[0].shape"),
    "sequence cotangents of other positions": (
        shape("sequence.cotangent", 1, 2, 4, 2),
        InvalidProgram,
        "linear.cotang",
    ),
    "sequence cotangents without positions": (shape("sequence.cotangent", 1, 2, 6), InvalidProgram, "linear.cotangent"),
    "embedding cotangents of other positions": (
        shape("embedding.cotangent", 1, 2, 3, 2),
        InvalidProgram,
        "embedding.cotangent",
    ),
    "embedding indices of three dimensions": (
        shape("embedding.indices", 2, 2, 1),
        InvalidProgram,
        "tensors[7].shape",
    ),
    "an embedding of nothing": (
        lambda h: h.blocks[4].embedding.ClearField("embeddings"),
        InvalidProgram,
        "embedding.embeddings",
    ),
    "indices that are floats": (spec("embedding.indices", dtype=pb.DTYPE_FLOAT32), InvalidProgram, "tensors[7].dtype"),
    "cotangents that are integers": (
        spec("linear.cotangent", dtype=pb.DTYPE_INT64),
        InvalidProgram,
        "DTYPE_FLOAT32 or",
    ),
    "a drive that is integers": (spec("drive", dtype=pb.DTYPE_INT32), InvalidProgram, "tensors[9].dtype"),
    "indices where inputs belong": (spec("linear.input", role=pb.ROLE_INDICES), InvalidProgram, "tensors[0].dtype"),
    "indices of a layer that has none": (
        spec("linear.input", role=pb.ROLE_INDICES, dtype=pb.DTYPE_INT32),
        UnknownRole,
        "ROLE_INDICES",
    ),
    "conv cotangents of another extent": (shape("conv2d.cotangent", 1, 2, 4, 3, 3), InvalidProgram, "conv2d.cotangent"),
    "conv cotangents of other samples": (shape("conv2d.cotangent", 1, 3, 4, 2, 2), InvalidProgram, "conv2d.cotangent"),
    "conv channels that groups do not divide": (shape("conv2d.input", 2, 3, 4, 4), InvalidProgram, "conv2d.groups"),
    "no groups": (conv("groups", 0), InvalidProgram, "conv2d.groups"),
    "groups that nothing divides by": (conv("groups", 2**32 - 1), InvalidProgram, "conv2d.groups"),
    "a kernel larger than the padded input": (conv("kernel", 5, 5), InvalidProgram, "conv2d.cotangent"),
    "a kernel of nothing": (conv("kernel", 0, 3), InvalidProgram, "conv2d.kernel"),
    "a kernel with one extent": (conv("kernel", 3), InvalidProgram, "conv2d.kernel"),
    "a kernel with three extents": (conv("kernel", 3, 3, 3), InvalidProgram, "conv2d.kernel"),
    "a huge kernel": (conv("kernel", 2**32 - 1, 2**32 - 1), InvalidProgram, "conv2d.cotangent"),
    "a huge padding": (conv("padding", 2**32 - 1, 2**32 - 1), InvalidProgram, "conv2d.cotangent"),
    "a huge stride": (conv("stride", 2**32 - 1, 2**32 - 1), InvalidProgram, "conv2d.cotangent"),
    "a stride of nothing": (conv("stride", 0, 1), InvalidProgram, "conv2d.stride"),
    "a huge dilation": (conv("dilation", 2**32 - 1, 1), InvalidProgram, "conv2d.cotangent"),
    "a dilation of nothing": (conv("dilation", 1, 0), InvalidProgram, "conv2d.dilation"),
    "a bias too many": (conv("bias", True), InvalidProgram, "DRIVE"),
    "an unknown dtype": (spec("rows", dtype=99), InvalidProgram, "tensors[4].dtype"),
    "an unspecified dtype": (lambda h: h.tensors[4].ClearField("dtype"), InvalidProgram, "tensors[4].dtype"),
    "codes without a scale": (codes(), InvalidProgram, "tensors[4].scales is 0 numbers; expected 1 or 2"),
    "codes with too many scales": (codes(1.0, 1.0, 1.0), InvalidProgram, "tensors[4].scales is 3 numbers"),
    "a scale that is NaN": (codes(1.0, NAN), InvalidProgram, "tensors[4].scales[1] is nan"),
    "an infinite scale": (codes(INF, 1.0), InvalidProgram, "tensors[4].scales[0] is inf"),
    "a negative scale": (codes(1.0, -1.0), InvalidProgram, "tensors[4].scales[1] is -1.0"),
    "a scale of nothing": (codes(0.0), InvalidProgram, "tensors[4].scales[0] is 0.0"),
    "scales of floats": (spec("rows", scales=[1.0]), InvalidProgram, "tensors[4].scales is 1 numbers; expected 0"),
    "a drive in codes": (spec("drive", dtype=pb.DTYPE_INT16, scales=[1.0]), InvalidProgram, "tensors[9].dtype"),
    "a start in half precision": (spec("start", dtype=pb.DTYPE_BFLOAT16), InvalidProgram, "tensors[10].dtype"),
    "indices in codes": (
        spec("embedding.indices", dtype=pb.DTYPE_INT16, scales=[1.0]),
        InvalidProgram,
        "tensors[7].dt",
    ),
    "an unknown role": (spec("rows", role=99), UnknownRole, "role 99"),
    "an unspecified role": (lambda h: h.tensors[4].ClearField("role"), UnknownRole, "ROLE_UNSPECIFIED"),
    "a role of another kind": (spec("rows", role=pb.ROLE_INPUT), UnknownRole, "ROLE_INPUT"),
    "a drive given twice": (twice("drive"), UnknownRole, "ROLE_DRIVE"),
    "rows given twice": (twice("rows"), UnknownRole, "ROLE_ROWS"),
    "a tensor of no block": (spec("rows", block=7), InvalidProgram, "tensors[4].block"),
    "a block without its tensor": (drop("tensors", TENSOR["conv2d.input"]), InvalidProgram, "blocks[1]"),
    "a tensor without its block": (drop("blocks", 4), InvalidProgram, "tensors[7].block"),
    "no drive": (no_drive, InvalidProgram, "program tensors"),
    "no blocks": (no_blocks, InvalidProgram, "blocks"),
    "a block of an unknown kind": (unknown_kind, UnsupportedBlock, "blocks[2]"),
    "a block of no kind": (lambda h: h.blocks[0].Clear(), UnsupportedBlock, "blocks[0]"),
    "a dense block among others": (kind(0, "dense"), UnknownRole, "ROLE_INPUT"),
    "a start policy that nobody knows": (number(start=9), InvalidProgram, "start"),
    "no start policy": (lambda h: h.ClearField("start"), InvalidProgram, "start"),
    "a start policy without its tensor": (drop("tensors", TENSOR["start"]), InvalidProgram, "program tensors"),
    "a start tensor without its policy": (number(start=pb.START_KEEP), InvalidProgram, "program tensors"),
    "negative damping": (number(damping=-0.1), InvalidProgram, "damping"),
    "damping that is NaN": (number(damping=NAN), InvalidProgram, "damping"),
    "infinite damping": (number(damping=INF), InvalidProgram, "damping"),
    "negative noise": (number(noise=-1e-9), InvalidProgram, "noise"),
    "noise that is NaN": (number(noise=NAN), InvalidProgram, "noise"),
    "infinite noise": (number(noise=INF), InvalidProgram, "noise"),
    "not before NaN": (number(not_before=NAN), InvalidProgram, "not_before"),
    "not before the end of time": (number(not_before=INF), InvalidProgram, "not_before"),
    "not before a negative time": (number(not_before=-1.0), InvalidProgram, "not_before"),
    "a reading at NaN": (reads((NAN, 0.0)), InvalidProgram, "reads[0].after"),
    "a reading that never comes": (reads((1.0, 0.0), (INF, 0.0)), InvalidProgram, "reads[1].after"),
    "a reading before the program": (reads((-1.0, 0.0)), InvalidProgram, "reads[0].after"),
    "a window of NaN": (reads((1.0, NAN)), InvalidProgram, "reads[0].window"),
    "a negative window": (reads((1.0, -1.0)), InvalidProgram, "reads[0].window"),
    "a window longer than the program": (reads((1.0, 1.5)), InvalidProgram, "reads[0].window"),
    "too many readings": (reads(*[(1.0, 0.0)] * 65), InvalidProgram, "reads"),
    "more cells and bytes than 64 bits count": (shape("rows", 2, 2**63), CapacityExceeded, "cells"),
    "rows that nothing could hold": (shape("rows", 2**40, 2**20), InvalidProgram, "blocks[2]"),
}


@pytest.mark.parametrize(("change", "error", "match"), HEADERS.values(), ids=HEADERS)
def test_a_bad_header_is_refused_before_anything_is_reserved(device, change, error, match):
    header, data = encoded(program())
    change(header)
    if error is CapacityExceeded:
        header.tensors[TENSOR["drive"]].shape[:] = header.tensors[TENSOR["start"]].shape[:] = [2**63 + 56]
    with device.raw() as raw, refused(error, match):
        raw.upload(header, data)


@pytest.mark.parametrize("extents", [(3, 4), (2**33, 2**33 - 1)], ids=["small", "huge"])
def test_a_dense_matrix_that_is_not_square_is_refused(device, extents):
    header, data = encoded(dense())
    header.tensors[0].shape[:] = extents
    with device.raw() as raw, refused(InvalidProgram, "dense.matrix"):
        raw.upload(header, data)
    with pytest.raises(InvalidProgram, match=r"dense\.matrix"):
        Dense(torch.ones(3, 4))


@pytest.mark.parametrize("extents", [(2**40, 2**20), (2**63, 2**20), (2**64 - 1, 1), (1, 2**64 - 1)])
def test_announced_bytes_beyond_the_limit_are_refused_without_reserving_them(device, extents):
    header, data = encoded(Program(Rows(torch.ones(2, 3)), torch.ones(3)))
    header.tensors[0].shape[:] = extents
    header.tensors[1].shape[:] = extents[1:]
    before = psutil.Process(device.daemon.process.pid).memory_info().rss
    with device.raw() as raw:
        with refused(CapacityExceeded):
            raw.upload(header, data)
        assert not uploads_in(device.daemon)
    assert psutil.Process(device.daemon.process.pid).memory_info().rss - before < 1 << 26


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A device of 100 cells and 10,000 bytes."""
    from tests.daemon import Daemon

    options = ("--clock", "stepped", "--cells", "100", "--max-bytes", "10000")
    with Daemon(tmp_path_factory.mktemp("d") / "s", *options) as one:
        yield one


@pytest.mark.parametrize(
    ("operator", "match"),
    [
        (Rows(torch.ones(1, 101)), "101 cells"),
        (Rows(torch.ones(25, 100)), "10400 bytes"),
        (LinearRows(torch.ones(1, 40), torch.ones(1, 1, 40), bias=False), "1600 cells"),
        (Dense(torch.eye(50)), "10200 bytes"),
    ],
    ids=["cells", "bytes", "cells of structured factors", "bytes of a dense matrix"],
)
def test_a_program_larger_than_the_device_is_refused(small, operator, match):
    device = SteadyDevice(small)
    drive = torch.ones(operator.parameters)
    with device.raw() as raw, refused(CapacityExceeded, match):
        raw.upload(*encoded(Program(operator, drive)))
    with device.session() as session, pytest.raises(CapacityExceeded, match=match):
        session.program(operator, drive)
    with device.session() as session:  # the largest that fits
        session.program(Rows(torch.ones(24, 100)), torch.ones(100))
        session.program(Rows(torch.ones(2, CELLS)), torch.ones(CELLS))
    SteadyDevice(small).assert_unharmed()


def test_wrong_shapes_dtypes_and_numbers_are_refused_in_python_before_they_travel(device):
    with device.session() as session:
        for drive in (torch.ones(4), torch.ones(1, 3), torch.ones(3, dtype=torch.int64), torch.ones(3).half()):
            with pytest.raises(InvalidProgram, match="drive"):
                session.program(Rows(torch.ones(2, 3)), drive)
        for arguments in (
            {"damping": -1.0},
            {"damping": NAN},
            {"damping": INF},
            {"noise": -1.0},
            {"noise": NAN},
            {"noise": INF},
            {"start": "there"},
            {"start": torch.ones(2)},
        ):
            with pytest.raises(InvalidProgram, match=next(iter(arguments))):
                session.program(Rows(torch.ones(2, 3)), torch.ones(3), **arguments)
        for analog_time in (-1.0, NAN, INF):
            with pytest.raises(InvalidProgram, match="after"):
                session.solve(Rows(torch.ones(2, 3)), torch.ones(3), analog_time=analog_time)
        with pytest.raises(InvalidProgram, match="window"):
            session.solve(Rows(torch.ones(2, 3)), torch.ones(3), analog_time=1.0, window=2.0)
    for wrong in (torch.ones(2, 3, 1), torch.ones(2, 3, dtype=torch.int32), torch.ones(2, 0), torch.ones(2, 3).bool()):
        with pytest.raises(InvalidProgram, match="rows"):
            Rows(wrong)


# Values.


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("tensor", [*(name for name in TENSOR if name != "embedding.indices"), "dense.matrix"])
def test_a_value_that_is_not_finite_is_refused_wherever_it_is(device, tensor, value):
    bad = dense() if tensor == "dense.matrix" else program()
    _, tensors = encoded_tensors(bad)
    tensors[TENSOR.get(tensor, 0)].view(-1)[-1] = value  # shares memory with the program
    named = tensor.replace("sequence", "linear")
    with device.raw() as raw, refused(InvalidProgram, named) as caught:
        raw.upload(*encoded(bad))
    assert str(value) in caught.value.details()
    with device.session() as session, pytest.raises(InvalidProgram, match=f"{named}.*is {value}") as raised:
        session.program(bad.operator, bad.drive, damping=0.1, start=bad.start)
    assert named in raised.value.field
    assert raised.value.found == str(value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("index", [-1, 4, -(2**31), 2**31 - 1])
def test_an_index_out_of_range_is_refused(device, index, dtype):
    indices = torch.tensor([[0, 3], [index, 1]], dtype=dtype)
    bad = Program(EmbeddingRows(indices, torch.ones(1, 2, 2, 2), embeddings=4), torch.ones(8), damping=0.1)
    with device.raw() as raw, refused(InvalidProgram, rf"embedding.indices[1, 0] is {index}; every value must be"):
        raw.upload(*encoded(bad))
    with device.session() as session, pytest.raises(InvalidProgram, match="less than 4") as raised:
        session.program(bad.operator, bad.drive, damping=0.1)
    assert (raised.value.field, raised.value.found) == ("embedding.indices", str(index))


def encoded_tensors(program: Program):
    from spu_link import wire

    return wire.header_of(program)


@pytest.mark.parametrize(
    ("matrix", "match"),
    [
        ([[1.0, 0.5], [0.4, 1.0]], "asymmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "indefinite"),
        ([[-1.0, 0.0], [0.0, 1.0]], "indefinite"),
        ([[0.0, 1e-3], [1e-3, 0.0]], "indefinite"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dense_matrix_must_be_symmetric_and_positive_semi_definite(device, matrix, match, dtype):
    bad = Program(Dense(torch.tensor(matrix, dtype=dtype)), torch.ones(2, dtype=dtype), damping=5.0)
    with device.raw() as raw, refused(InvalidProgram, match):
        raw.upload(*encoded(bad))
    with device.session() as session, pytest.raises(InvalidProgram, match=match):
        session.program(bad.operator, bad.drive, damping=5.0)


def test_codes_that_run_over_float32_are_refused(device):
    header, data = encoded(Program(Rows(torch.ones(2, 3)), torch.ones(3), damping=0.1, precision="int16"))
    header.tensors[0].scales[1] = 3e38
    with device.raw() as raw, refused(InvalidProgram, "rows[1, 0] is inf"):
        raw.upload(header, data)


def test_what_does_not_fit_into_a_precision_is_refused_before_it_travels(device):
    operator = LinearRows(torch.full((2, 3), 1e5), torch.ones(1, 2, 2), bias=True)
    with device.session() as session:
        with pytest.raises(InvalidProgram, match=r"linear\.input.*float16 ends at.*int16 or bfloat16"):
            session.program(operator, torch.ones(8), damping=0.1, precision="float16")
        with pytest.raises(InvalidProgram, match="precision is 'float8'"):
            session.solve(operator, torch.ones(8), analog_time=1.0, precision="float8")
        assert session.uploaded_bytes == 0


def test_two_dtypes_in_one_block_are_refused(device):
    header, data = encoded(program())
    header.tensors[TENSOR["linear.input"]].dtype = pb.DTYPE_FLOAT64
    with device.raw() as raw, refused(InvalidProgram, "dtype"):
        raw.upload(header, data + bytes(24))
    with pytest.raises(InvalidProgram, match="dtype"):
        LinearRows(torch.ones(2, 3), torch.ones(1, 2, 2, dtype=torch.float64), bias=True)


# Uploads that do not arrive as they were sent.


def flipped(parts):
    data = bytearray(parts[2].chunk.data)
    data[10] ^= 1
    parts[2].chunk.data = bytes(data)
    return parts


def with_offset(parts, offset):
    parts[2].chunk.offset = offset
    return parts


def wrong_checksum(parts):
    parts[-1].trailer.crc32c ^= 1
    return parts


def extra(parts):
    end = parts[-2].chunk.offset + len(parts[-2].chunk.data)
    return [*parts[:-1], pb.ProgramRequest(chunk=pb.Chunk(offset=end, data=b"x")), parts[-1]]


UPLOADS = {
    "a flipped byte": (flipped, UploadCorrupt, "crc32c"),
    "a wrong checksum": (wrong_checksum, UploadCorrupt, "crc32c"),
    "a chunk too early": (lambda parts: with_offset(parts, 0), UploadCorrupt, "chunk.offset"),
    "a chunk too late": (lambda parts: with_offset(parts, 128), UploadCorrupt, "chunk.offset"),
    "a chunk at the end of 64 bits": (lambda parts: with_offset(parts, 2**64 - 1), UploadCorrupt, "chunk.offset"),
    "a chunk that comes twice": (lambda parts: [*parts[:2], *parts[1:]], UploadCorrupt, "chunk.offset"),
    "a chunk left out": (lambda parts: [*parts[:1], *parts[2:]], UploadCorrupt, "chunk.offset"),
    "a byte too many": (extra, UploadCorrupt, "announced"),
    "an end before the last chunk": (lambda parts: [*parts[:-2], parts[-1]], UploadCorrupt, "announced"),
    "no chunk at all": (lambda parts: [parts[0], parts[-1]], UploadCorrupt, "announced"),
    "no trailer": (lambda parts: parts[:-1], UploadCorrupt, "ended"),
    "a header and no more": (lambda parts: parts[:1], UploadCorrupt, "ended"),
    "nothing": (lambda parts: [], UploadCorrupt, "ended"),
    "a header twice": (lambda parts: [parts[0], *parts], ProtocolError, "header"),
    "a chunk before the header": (lambda parts: [parts[1], *parts], ProtocolError, "chunk"),
    "a trailer before the header": (lambda parts: parts[::-1], ProtocolError, "trailer"),
    "an empty message first": (lambda parts: [pb.ProgramRequest(), *parts], ProtocolError, "nothing"),
    "an empty message in the middle": (
        lambda parts: [*parts[:2], pb.ProgramRequest(), *parts[2:]],
        ProtocolError,
        "nothing",
    ),
}


@pytest.mark.parametrize(("change", "error", "match"), UPLOADS.values(), ids=UPLOADS)
def test_a_broken_upload_leaves_no_trace(device, change, error, match):
    with device.raw() as raw:
        header, data = encoded(program())
        header.session.CopyFrom(raw.session)
        with refused(error, match):
            raw.send(change(messages(header, data)))
        assert raw.info().sequence == device.sequence
        raw.renew()  # the session goes on


class Silence:
    """Sends the first messages of an upload, and then waits until it is told to end."""

    def __init__(self, parts, seconds=SECONDS):
        self.parts = parts
        self.over = threading.Event()
        self.seconds = seconds

    def __iter__(self):
        yield from self.parts
        self.over.wait(self.seconds)


def begun(raw):
    """The first half of an upload."""
    header, data = encoded(program())
    header.session.CopyFrom(raw.session)
    return messages(header, data)[:4]


def test_an_upload_that_falls_silent_ends_with_the_time_to_live(device):
    with device.raw(ttl=0.3) as raw:
        silence = Silence(begun(raw))
        begin = time.monotonic()
        with refused(UploadCorrupt, "0.3 s"):
            raw.send(silence)
        silence.over.set()
        assert 0.25 < time.monotonic() - begin < 10.0


def test_an_upload_that_is_cancelled_leaves_no_trace(device):
    with device.raw() as raw:
        silence = Silence(begun(raw))
        call = raw.stub.Program(iter(silence), timeout=SECONDS)
        eventually(lambda: bool(uploads_in(device.daemon)), "the upload has begun")
        call.cancel()
        silence.over.set()
        with pytest.raises(grpc.RpcError):
            list(call)
        eventually(lambda: not uploads_in(device.daemon), "the upload is forgotten")
        raw.renew()


def test_an_upload_whose_channel_is_closed_leaves_no_trace(device):
    with device.raw(ttl=0.3) as raw:
        silence = Silence(begun(raw))
        call = raw.stub.Program(iter(silence), timeout=SECONDS)
        eventually(lambda: bool(uploads_in(device.daemon)), "the upload has begun")
        raw.channel.close()
        silence.over.set()
        assert call.code() == grpc.StatusCode.CANCELLED
        raw.session.Clear()
        eventually(lambda: not uploads_in(device.daemon), "the upload is forgotten")


UPLOADER = """
import sys, time
from tests.system.raw import Raw
from tests.system.test_bad_input import Silence, begun
raw = Raw(sys.argv[1])
raw.open(0.5)
raw.send(Silence(begun(raw)))
"""


def test_an_upload_whose_client_is_killed_leaves_no_trace(device):
    with subprocess.Popen([sys.executable, "-c", UPLOADER, device.address]) as client:
        eventually(lambda: bool(uploads_in(device.daemon)), "the upload has begun", seconds=60.0)
        client.kill()
        eventually(lambda: not uploads_in(device.daemon), "the upload is forgotten")


def test_a_message_larger_than_the_protocol_allows_is_refused(device):
    with device.raw() as raw:
        header, data = encoded(program())
        header.session.CopyFrom(raw.session)
        parts = messages(header, data)
        parts[1].chunk.data = bytes(5 << 20)
        with pytest.raises(grpc.RpcError) as caught:
            raw.send(parts)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


# Sessions.


def calls(raw):
    """Every call that needs a session."""
    return {
        "program": lambda: raw.upload(*encoded(program())),
        "advance": lambda: raw.advance(1.0),
        "read": lambda: raw.read(),
        "renew": lambda: raw.renew(),
    }


CALLS = ("program", "advance", "read", "renew")


@pytest.mark.parametrize("call", CALLS)
def test_no_session(device, call):
    with device.raw(ttl=None) as raw, refused(SessionRequired, "session"):
        calls(raw)[call]()


@pytest.mark.parametrize("call", CALLS)
def test_a_guessed_session(device, call):
    with device.raw() as owner, device.raw(ttl=None) as raw:
        raw.session.CopyFrom(owner.session)
        raw.session.id = "0" * 32
        with refused(SessionRequired, "session"):
            calls(raw)[call]()
        raw.session.Clear()
        owner.renew()


@pytest.mark.parametrize("call", CALLS)
def test_an_expired_session(device, call):
    with device.raw(ttl=0.1) as raw:
        raw.wait_until_free()
        with refused(SessionExpired, "0.1 s"):
            calls(raw)[call]()


@pytest.mark.parametrize("call", CALLS)
def test_a_stale_fencing_number(device, call):
    with device.raw(ttl=0.1) as zombie:
        zombie.wait_until_free()
        with device.raw() as heir:
            with refused(StaleSession, "'raw'"):
                calls(zombie)[call]()
            heir.renew()


@pytest.mark.parametrize("call", CALLS)
def test_a_session_of_another_run_of_the_daemon(device, call):
    with device.raw() as owner, device.raw(ttl=None) as raw:
        raw.session.CopyFrom(owner.session)
        raw.session.epoch -= 1
        with refused(SessionExpired, "restarted"):
            calls(raw)[call]()
        raw.session.Clear()


def test_a_session_that_was_closed(device):
    with connect(device.address) as spu:
        session = spu.open_session()
        session.close()
        with pytest.raises(SessionExpired, match="closed"):
            session.program(Rows(torch.ones(2, 3)), torch.ones(3))
        with pytest.raises(SessionExpired, match="closed"):
            session.advance(1.0)
        with pytest.raises(SessionExpired, match="closed"):
            session.read()
        session.close()


def test_a_second_session_is_told_how_long_to_wait(device):
    with device.raw(ttl=30.0):
        with device.raw(ttl=None) as second, refused(DeviceBusy, "'raw'"):
            second.open()
        with connect(device.address) as spu:
            with pytest.raises(DeviceBusy, match="'raw'") as caught:
                spu.open_session()
            assert 20.0 < caught.value.retry_after <= 30.0
            assert spu.info.session_holder == "raw"


@pytest.mark.parametrize("ttl", [NAN, INF, -INF, 0.0, -1.0, 0.05, 3601.0])
def test_a_time_to_live_out_of_range(device, ttl):
    with device.raw(ttl=None) as raw, refused(InvalidProgram, "ttl"):
        raw.open(ttl)
    with connect(device.address) as spu, pytest.raises(InvalidProgram, match="ttl"):
        spu.open_session(ttl=ttl)


def test_a_holder_with_a_name_too_long(device):
    with connect(device.address) as spu, pytest.raises(InvalidProgram, match="holder"):
        spu.open_session(holder="x" * 201)


# Advances and readings.


@pytest.mark.parametrize("duration", [-1.0, NAN, INF, -INF])
def test_an_advance_by_no_duration(device, duration):
    with device.raw() as raw:
        before = raw.info().time
        with refused(InvalidProgram, "duration"):
            raw.advance(duration)
        assert raw.info().time == before
    with device.session() as session, pytest.raises(InvalidProgram, match="duration"):
        session.advance(duration)


def test_an_advance_of_a_free_running_clock(free_device):
    with free_device.raw() as raw, refused(ClockMismatch, "runs by itself"):
        raw.advance(1.0)
    with free_device.session() as session, pytest.raises(ClockMismatch, match=r"read\(at=…\)"):
        session.advance(1.0)


@pytest.mark.parametrize("at", [NAN, INF, -INF])
def test_a_reading_at_no_time(device, free_device, at):
    for one in (device, free_device):
        with one.raw() as raw, refused(InvalidProgram, "at"):
            raw.read(at=at)
        with one.session() as session, pytest.raises(InvalidProgram, match="at"):
            session.read(at=at)


@pytest.mark.parametrize("window", [NAN, INF, -INF, -1.0])
def test_a_reading_over_no_window(device, window):
    with device.raw() as raw, refused(InvalidProgram, "window"):
        raw.read(window=window)
    with device.session() as session, pytest.raises(InvalidProgram, match="window"):
        session.read(window=window)


def test_a_reading_in_the_past(device, free_device):
    for one in (device, free_device):
        with one.raw() as raw, refused(ReadInPast, "past"):
            raw.read(at=raw.info().time - 10.0)
        with one.session() as session, pytest.raises(ReadInPast, match="past"):
            session.read(at=session.read().time - 1.0)


def test_a_window_that_reaches_back_behind_the_last_event(device):
    with device.session() as session:
        session.read()
        session.advance(2.0)
        with pytest.raises(ReadInPast, match="window"):
            session.read(window=2.5)
        reading = session.read(window=2.0)  # all that is left of the path
        assert reading.window == 2.0
    with device.raw() as raw, refused(ReadInPast, "window"):
        raw.read(window=1.0)


def test_a_reading_far_away_on_a_free_clock_ends_with_its_deadline(free_device):
    with free_device.session() as session:
        for at in (1e9, 1e300):
            with pytest.raises(DeadlineExceeded):
                session.read(at=at, timeout=0.3)


def test_a_reading_that_no_advance_brings_about_ends_with_its_deadline(device):
    with device.session() as session:
        now = session.advance(0.0)
        with pytest.raises(DeadlineExceeded):
            session.read(at=now + 10.0, timeout=0.3)
        with pytest.raises(DeadlineExceeded):
            session.read(at=now + 10.0, window=5.0, timeout=0.3)
        session.advance(20.0)  # nothing waits on the way any more
    with device.raw() as raw, pytest.raises(grpc.RpcError) as caught:
        list(raw.stub.Read(pb.ReadRequest(session=raw.session, at=raw.info().time + 1.0), timeout=0.3))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


# Daemons that are not there, not ready, or no more.


def test_no_program_to_read(daemon):
    one = daemon("--clock", "stepped")
    with Raw(one.address) as raw:
        raw.open()
        with refused(NoProgram, "program it first"):
            raw.read()
    with connect(one.address) as spu, spu.session() as session:
        assert spu.info.state == "idle"
        with pytest.raises(NoProgram, match="program it first"):
            session.read()
        with pytest.raises(NoProgram):
            session.read(window=0.0)
        session.advance(3.0)
        with pytest.raises(NoProgram):
            session.read(window=2.0)
    SteadyDevice(one).assert_unharmed()


def no_daemon_addresses(folder):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return f"unix:{folder}/nobody.sock", f"127.0.0.1:{port}"


def test_a_daemon_that_is_not_there(tmp_path):
    for address in no_daemon_addresses(tmp_path):
        begin = time.monotonic()
        with pytest.raises(DeviceUnavailable) as caught:
            connect(address, timeout=20.0)
        assert time.monotonic() - begin < 10.0
        assert f"spu-server serve --listen {address}" in str(caught.value)
        assert caught.value.found == address


@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1", "127.0.0.1:http", "inproc"])
def test_an_address_of_no_known_form(address):
    with pytest.raises(InvalidProgram, match="address"):
        connect(address)


async def waiting_read(session, spu):
    """A read that has reached the daemon, for a time that nothing brings about before the test is over."""
    reading = asyncio.create_task(session.read(at=1e6, timeout=SECONDS))
    for _ in range(2):
        await spu.info()  # on the same connection: by its answer the daemon has the read as well
    assert not reading.done()
    return reading


async def test_a_daemon_that_dies_in_the_middle_of_a_read(daemon):
    one = daemon("--clock", "stepped")
    SteadyDevice(one)
    async with await aio.connect(one.address) as spu, spu.session() as session:
        reading = await waiting_read(session, spu)
        one.process.send_signal(signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(DeviceUnavailable, match=r"s is|spu-server serve"):
            await asyncio.wait_for(reading, SECONDS)
        assert time.monotonic() - begin < 5.0
        with pytest.raises(DeviceUnavailable):
            await session.advance(1.0)


async def test_a_driver_that_dies_is_a_fault_of_the_device_and_not_the_end_of_the_daemon(daemon):
    one = daemon("--clock", "stepped")
    SteadyDevice(one)
    async with await aio.connect(one.address) as spu:
        async with spu.session() as session:
            reading = await waiting_read(session, spu)
            one.driver_process().kill()
            with pytest.raises(DeviceFault, match="SIGKILL"):
                await asyncio.wait_for(reading, SECONDS)
            with pytest.raises(DeviceFault, match="SIGKILL"):
                await session.read()
            with pytest.raises(DeviceFault, match="SIGKILL"):
                await session.program(Rows(torch.ones(1, 2)), torch.ones(2))
        info = await spu.info()
        assert info.state in ("fault", "restarting")
        assert "SIGKILL" in info.fault
        with pytest.raises(DeviceFault, match="SIGKILL"):
            await spu.open_session()
    with Raw(one.address) as raw, refused(DeviceFault, "SIGKILL"):
        raw.open()


def test_every_error_of_the_wire_is_told_by_an_error_of_python():
    told = {HEADERS[name][1] for name in HEADERS} | {UPLOADS[name][1] for name in UPLOADS}
    told |= {DeadlineExceeded, DeviceBusy, DeviceFault, DeviceUnavailable, NoProgram, ReadInPast, ClockMismatch}
    told |= {SessionExpired, SessionRequired, StaleSession}
    every = set(itertools.chain(*(_leaves(cls) for cls in SpuError.__subclasses__())))
    elsewhere = {
        "Clipped",
        "DeviceHalted",
        "EpochMismatch",
        "NotInLog",
        "OperatorGone",
        "Unsupported",
    }  # have their tests in other files
    assert {cls.__name__ for cls in every - told} <= elsewhere


def _leaves(cls):
    below = cls.__subclasses__()
    own = {cls} if cls.__module__ == "spu_link.errors" and cls.__name__ not in ("Retryable", "Persistent") else set()
    return own.union(*(_leaves(child) for child in below))
