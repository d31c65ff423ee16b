"""Programs and vectors come out of their bytes as they went in."""

from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spu_link import wire
from spu_link.errors import CapacityExceeded, InvalidProgram, UploadCorrupt
from spu_link.operators import Conv2dRows, Dense, EmbeddingRows, LayerRows, LinearRows, Rows
from spu_link.precision import PRECISIONS
from spu_link.program import Program
from spu_link.wire.tables import BLOCKS
from tests.profiles import examples
from tngd.spu.v1 import spu_pb2 as pb

DTYPES = st.sampled_from([torch.float32, torch.float64])


def tensor(*shape, dtype):
    return torch.arange(1.0, 1.0 + int(np.prod(shape)), dtype=dtype).reshape(shape).sin()


@st.composite
def factors(draw, m_shape):
    """A block of any kind with rows of (c, b)."""
    c, b = m_shape
    dtype = draw(DTYPES)
    small = st.integers(1, 4)
    kind = draw(st.sampled_from(["rows", "linear", "conv2d", "embedding"]))
    if kind == "rows":
        return Rows(tensor(c * b, draw(small), dtype=dtype))
    if kind == "linear":
        samples = draw(st.sampled_from([(b,), (b, draw(small))]))
        inputs, cotangents = tensor(*samples, draw(small), dtype=dtype), tensor(c, *samples, draw(small), dtype=dtype)
        return LinearRows(inputs, cotangents, bias=draw(st.booleans()))
    if kind == "embedding":
        p, embeddings = draw(small), draw(small)
        indices = torch.arange(b * p, dtype=draw(st.sampled_from([torch.int32, torch.int64]))).view(b, p) % embeddings
        return EmbeddingRows(indices, tensor(c, b, p, draw(small), dtype=dtype), embeddings=embeddings)
    groups = draw(st.integers(1, 2))
    channels, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel, stride, dilation = (draw(st.tuples(st.integers(1, 2), st.integers(1, 2))) for _ in range(3))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    extent = draw(st.tuples(st.integers(3, 5), st.integers(3, 5)))
    after = [
        (e + 2 * p - d * (k - 1) - 1) // s + 1
        for e, p, d, k, s in zip(extent, padding, dilation, kernel, stride, strict=True)
    ]
    return Conv2dRows(
        tensor(b, channels, *extent, dtype=dtype),
        tensor(c, b, out, *after, dtype=dtype),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )


@st.composite
def programs(draw):
    if draw(st.booleans()):
        m_shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        blocks = draw(st.lists(factors(m_shape), min_size=1, max_size=3))
        operator = blocks[0] if len(blocks) == 1 else LayerRows(blocks)
    else:
        n = draw(st.integers(1, 5))
        operator = Dense(torch.eye(n, dtype=draw(DTYPES)) * 3)
    n = operator.parameters
    start = draw(st.sampled_from(["keep", "drive", "tensor"]))
    return Program(
        operator,
        tensor(n, dtype=draw(DTYPES)),
        damping=draw(st.floats(0, 1e3)),
        noise=draw(st.floats(0, 1e3)),
        start=tensor(n, dtype=draw(DTYPES)) if start == "tensor" else start,
    )


def sent(program, size):
    """The program after its way through header, chunks and memory."""
    header, tensors = wire.header_of(program)
    header = pb.ProgramHeader.FromString(header.SerializeToString())
    layout = wire.layout(header, cells=10**6, max_bytes=10**6)
    assert layout.cells == program.cells
    assert layout.nbytes == program.nbytes
    buffer = bytearray(layout.nbytes)
    assembler = wire.Assembler(layout.nbytes, wire.writer(buffer))
    crc = 0
    for chunk in wire.numbered(wire.chunks(wire.byte_views(tensors), size)):
        assert 0 < len(chunk.data) <= size
        crc = google_crc32c.extend(crc, chunk.data)
        assembler.add(chunk)
    assembler.finish(crc)
    return wire.program_from(header, memoryview(buffer))


@settings(max_examples=examples(200))
@given(program=programs(), size=st.integers(1, 300))
def test_a_program_comes_out_as_it_went_in(program, size):
    arrived = sent(program, size)
    assert (arrived.damping, arrived.noise) == (program.damping, program.noise)
    assert arrived.precision == program.precision
    assert arrived.nbytes == program.nbytes
    assert arrived.drive.dtype == program.drive.dtype
    assert torch.equal(arrived.drive, program.drive)
    if isinstance(program.start, torch.Tensor):
        assert arrived.start.dtype == program.start.dtype
        assert torch.equal(arrived.start, program.start)
    else:
        assert arrived.start == program.start
    assert type(arrived.operator) is type(program.operator)
    for block, arrived_block in zip(program.operator.to_blocks(), arrived.operator.to_blocks(), strict=True):
        assert (block.kind, block.geometry) == (arrived_block.kind, arrived_block.geometry)
        assert list(block.tensors) == list(arrived_block.tensors)
        for role, operand in block.tensors.items():
            assert arrived_block.tensors[role].dtype == operand.dtype
            assert torch.equal(arrived_block.tensors[role], operand)


def test_every_block_has_a_message_with_its_fields():
    messages = {
        block.name: tuple(field.name for field in block.message_type.fields) for block in pb.Block.DESCRIPTOR.fields
    }
    assert messages == {kind: cls.fields for kind, cls in BLOCKS.items()}


class Unregistered(Rows):
    kind = "unregistered"


def test_an_operator_without_a_form_on_the_wire_is_refused():
    with pytest.raises(InvalidProgram, match="Unregistered of kind 'unregistered'; expected one of dense or kept or"):
        wire.header_of(Program(Unregistered(torch.ones(1, 2)), torch.ones(2)))


def test_float64_after_an_odd_number_of_float32_arrives_whole():
    drive = torch.tensor([1.0, np.pi, -1e300], dtype=torch.float64)
    arrived = sent(Program(Rows(torch.ones(1, 3)), drive), 7)
    assert torch.equal(arrived.drive, drive)


@pytest.mark.parametrize(
    "view",
    [torch.arange(12.0).reshape(3, 4).T, torch.arange(24.0).reshape(4, 6)[:, ::2], torch.ones(1).expand(4, 3)],
    ids=["transposed", "strided", "expanded"],
)
def test_operands_that_are_views_travel_as_what_they_show(view):
    arrived = sent(Program(Rows(view), torch.ones(view.shape[1])), 16)
    assert torch.equal(arrived.operator.a, view)


def test_numpy_arrays_and_tensors_that_require_gradients_travel():
    a, b = np.ones((2, 3)), torch.ones(3, requires_grad=True)
    arrived = sent(Program(Rows(a), b), 16)
    assert arrived.operator.a.dtype == torch.float64
    assert not arrived.drive.requires_grad


def test_tensors_are_not_copied_out_of_the_memory_they_lie_in():
    header, tensors = wire.header_of(Program(Rows(torch.ones(2, 3)), torch.ones(3)))
    buffer = bytearray().join(wire.byte_views(tensors))
    arrived = wire.program_from(header, memoryview(buffer))
    buffer[:4] = np.float32(7.0).tobytes()
    assert arrived.operator.a[0, 0] == 7.0


@given(lengths=st.lists(st.integers(0, 20), max_size=6), size=st.integers(1, 30))
def test_chunks_are_full_but_for_the_last(lengths, size):
    data = [bytes(range(length)) for length in lengths]
    pieces = list(wire.chunks([memoryview(piece) for piece in data], size))
    assert b"".join(pieces) == b"".join(data)
    assert all(len(piece) == size for piece in pieces[:-1])
    numbered = list(wire.numbered(pieces))
    assert [chunk.offset for chunk in numbered] == [sum(map(len, pieces[:i])) for i in range(len(pieces))]


def assembler(nbytes=8):
    buffer = bytearray(nbytes)
    return wire.Assembler(nbytes, wire.writer(buffer)), buffer


def test_chunks_must_follow_each_other():
    one, buffer = assembler()
    one.add(pb.Chunk(offset=0, data=b"abcd"))
    for offset in (0, 3, 5, 8):
        with pytest.raises(UploadCorrupt, match=r"chunk\.offset"):
            one.add(pb.Chunk(offset=offset, data=b"efgh"))
    one.add(pb.Chunk(offset=4, data=b"efgh"))
    assert bytes(buffer) == b"abcdefgh"
    one.finish(google_crc32c.value(b"abcdefgh"))


def test_nothing_is_written_behind_the_end():
    one, buffer = assembler()
    with pytest.raises(UploadCorrupt, match="9 bytes"):
        one.add(pb.Chunk(offset=0, data=b"123456789"))
    assert bytes(buffer) == bytes(8)


def test_a_chunk_larger_than_the_limit_is_refused():
    one, buffer = assembler(wire.MAX_CHUNK_BYTES + 1)
    with pytest.raises(UploadCorrupt, match="at most 1048576 in one chunk"):
        one.add(pb.Chunk(offset=0, data=bytes(wire.MAX_CHUNK_BYTES + 1)))
    one.add(pb.Chunk(offset=0, data=b"x" * wire.MAX_CHUNK_BYTES))
    assert buffer.count(b"x") == wire.MAX_CHUNK_BYTES


def test_missing_bytes_and_a_wrong_checksum_are_distinguished():
    one, _ = assembler()
    one.add(pb.Chunk(offset=0, data=b"abcd"))
    with pytest.raises(UploadCorrupt, match="4 bytes"):
        one.finish(google_crc32c.value(b"abcd"))
    one.add(pb.Chunk(offset=4, data=b"efgh"))
    with pytest.raises(UploadCorrupt, match="crc32c"):
        one.finish(google_crc32c.value(b"abcdefgX"))


@settings(max_examples=examples(300))
@given(
    program=programs(),
    data=st.data(),
)
def test_a_header_with_any_shape_and_scales_is_accepted_or_refused_and_never_more(program, data):
    header, _ = wire.header_of(replace(program, precision=data.draw(st.sampled_from([None, *PRECISIONS]))))
    spec = data.draw(st.sampled_from(list(header.tensors)))
    spec.scales[:] = data.draw(st.one_of(st.just(list(spec.scales)), st.lists(st.floats(width=32), max_size=6)))
    extents = st.one_of(st.integers(0, 6), st.integers(0, 2**64 - 1))
    spec.shape[:] = data.draw(st.lists(extents, max_size=6))
    try:
        layout = wire.layout(header, cells=1000, max_bytes=10_000)
    except (InvalidProgram, CapacityExceeded):
        return
    assert layout.cells <= 1000
    assert layout.nbytes <= 10_000
    wire.program_from(header, memoryview(bytearray(layout.nbytes)))
