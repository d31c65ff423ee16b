"""Programs and vectors as bytes: header, layout, chunks and checksum.

An upload is a header that describes every tensor, the tensors' raw little-endian bytes one after the other in chunks,
and a CRC-32C over all of them. A header may describe the operator alone; what the program is otherwise then comes last.
`layout` checks a header from its numbers alone, before a byte of memory is reserved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from spu_link.errors import CapacityExceeded, OperatorGone, ProtocolError, UnknownRole, UnsupportedBlock, UploadCorrupt
from spu_link.landing import landed
from spu_link.operators import Conv2dRows, Dense, EmbeddingRows, Kept, LayerRows, LinearRows, Operator, Rows
from spu_link.operators.base import BlockFactor, Role, Shapes, either, mismatch
from spu_link.precision import NARROW, Precision, decode, encode
from spu_link.program import Program, non_negative, tensor_name
from tngd.spu.v1 import spu_pb2 as pb

CHUNK_BYTES = 1 << 18
"""Bytes of a chunk sent from here: smaller ones cost more calls, larger ones let sender and receiver wait in turn."""

MAX_CHUNK_BYTES = 1 << 20
"""Most bytes of a chunk that is accepted."""

WIDEST = 8
"""Bytes of the widest element."""

MAX_READS = 64
"""Most readings scheduled with one program."""

DTYPES: dict[pb.DType.ValueType, torch.dtype] = {
    pb.DTYPE_FLOAT32: torch.float32,
    pb.DTYPE_FLOAT64: torch.float64,
    pb.DTYPE_INT32: torch.int32,
    pb.DTYPE_INT64: torch.int64,
    pb.DTYPE_FLOAT16: torch.float16,
    pb.DTYPE_BFLOAT16: torch.bfloat16,
    pb.DTYPE_INT16: torch.int16,
}
INDEX_DTYPES = (pb.DTYPE_INT32, pb.DTYPE_INT64)
VECTOR_DTYPES = (pb.DTYPE_FLOAT32, pb.DTYPE_FLOAT64)
FACTOR_DTYPES = tuple(dtype for dtype in DTYPES if dtype not in INDEX_DTYPES)
WIRE_DTYPES = {dtype: wire for wire, dtype in DTYPES.items()}

FACTORS: dict[str, type[BlockFactor]] = {cls.kind: cls for cls in (Rows, LinearRows, Conv2dRows, EmbeddingRows)}
DIMENSIONS: dict[str, dict[Role, tuple[int, ...]]] = {
    "dense": {pb.ROLE_MATRIX: (2,)},
    "kept": {},
    "rows": {pb.ROLE_ROWS: (2,)},
    "linear": {pb.ROLE_INPUT: (2, 3), pb.ROLE_COTANGENT: (3, 4)},
    "conv2d": {pb.ROLE_INPUT: (4,), pb.ROLE_COTANGENT: (5,)},
    "embedding": {pb.ROLE_INDICES: (2,), pb.ROLE_COTANGENT: (4,)},
}
"""Tensors that each kind of block has, by role, and the numbers of dimensions they may have."""

WHOLE = ("dense", "kept")
"""Kinds of block that make up an operator alone."""

PROGRAM_ROLES = (pb.ROLE_DRIVE, pb.ROLE_START)
ROLE_DTYPES = {pb.ROLE_DRIVE: VECTOR_DTYPES, pb.ROLE_START: VECTOR_DTYPES, pb.ROLE_INDICES: INDEX_DTYPES}
"""Element types of tensors whose role says more than that they belong to an operator."""


@dataclass(frozen=True)
class Layout:
    """What a header promises.

    Attributes:
        cells: N.
        rows: m, or N for a dense operator.
        nbytes: bytes of all tensors; for an open header those of the operator, and the most that may follow.
        open: whether the header describes the operator alone.
    """

    cells: int
    rows: int
    nbytes: int
    open: bool


def header_of(program: Program) -> tuple[pb.ProgramHeader, list[Tensor]]:
    """Header of a program (without session), and its tensors in the order of the bytes, contiguous on the CPU.

    Raises:
        InvalidProgram: when a value does not fit into the program's precision.
    """
    header, tensors = operator_header(program.operator, program.precision)
    late, rest = late_header(program)
    header.MergeFrom(late)
    return header, tensors + rest


def late_header(program: Program) -> tuple[pb.ProgramHeader, list[Tensor]]:
    """What an open header leaves out of a program, for `complete`, and the tensors that follow the operator's."""
    header = pb.ProgramHeader(damping=program.damping, noise=program.noise)
    tensors: list[Tensor] = []
    _add(header, tensors, program.drive, role=pb.ROLE_DRIVE)
    if isinstance(program.start, Tensor):
        header.start = pb.START_TENSOR
        _add(header, tensors, program.start, role=pb.ROLE_START)
    else:
        header.start = {"keep": pb.START_KEEP, "drive": pb.START_DRIVE}[program.start]
    return header, landed(tensors)


def operator_header(operator: Operator, precision: Precision | None) -> tuple[pb.ProgramHeader, list[Tensor]]:
    """An open header, which describes the operator alone, and the operator's tensors as they travel in a precision."""
    header = pb.ProgramHeader()
    tensors: list[Tensor] = []
    for index, (block, operands) in enumerate(operator.wire()):
        header.blocks.append(block)
        for role, operand in operands.items():
            encoded, scales = operand, list[float]()
            if precision is not None and role != pb.ROLE_INDICES:
                name = tensor_name(block, role)
                encoded, scales = encode(operand, precision, field=name, alike=role == pb.ROLE_MATRIX)
            _add(header, tensors, encoded, role=role, block=index, scales=scales)
    return header, landed(tensors)


def _add(header: pb.ProgramHeader, tensors: list[Tensor], tensor: Tensor, **description: Any) -> None:
    tensors.append(tensor)
    header.tensors.append(tensor_spec(tensor, **description))


def tensor_spec(
    tensor: Tensor, *, role: Role = pb.ROLE_UNSPECIFIED, block: int = 0, scales: Sequence[float] = ()
) -> pb.TensorSpec:
    """Description of a tensor."""
    dtype = WIRE_DTYPES[tensor.dtype]
    return pb.TensorSpec(role=role, block=block, dtype=dtype, shape=list(tensor.shape), scales=scales)


def byte_views(tensors: Iterable[Tensor]) -> list[memoryview]:
    """The raw bytes of contiguous CPU tensors, without a copy."""
    return [tensor.view(-1).view(torch.uint8).numpy().data for tensor in tensors]  # numpy has no bfloat16


def chunks(views: Iterable[memoryview], size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """One run of bytes over several views, in chunks of `size` (the last one shorter)."""
    pending: list[memoryview] = []
    room = size
    for view in views:
        start = 0
        while start < len(view):
            piece = view[start : start + room]
            pending.append(piece)
            start += len(piece)
            room -= len(piece)
            if room == 0:
                yield b"".join(pending)
                pending, room = [], size
    if pending:
        yield b"".join(pending)


def numbered(data: Iterable[bytes]) -> Iterator[pb.Chunk]:
    """Chunk messages of consecutive bytes."""
    offset = 0
    for piece in data:
        yield pb.Chunk(offset=offset, data=piece)
        offset += len(piece)


def writer(buffer: bytearray) -> Callable[[int, bytes], None]:
    """What stores bytes in a buffer of this process."""

    def write(offset: int, data: bytes) -> None:
        buffer[offset : offset + len(data)] = data

    return write


class Assembler:
    """Puts chunks in their place, and verifies them.

    Args:
        nbytes: announced size of the whole.
        write: stores bytes at an offset.

    Attributes:
        nbytes: the same; may be made smaller before `finish`, when the size turns out.
    """

    def __init__(self, nbytes: int, write: Callable[[int, bytes], object]) -> None:
        self.nbytes = nbytes
        self._write = write
        self._filled = 0
        self._crc = 0

    def add(self, chunk: pb.Chunk) -> None:
        """Store one chunk.

        Raises:
            UploadCorrupt: when it does not follow the last one, or runs over the end.
        """
        data = chunk.data
        end = self._filled + len(data)
        if len(data) > MAX_CHUNK_BYTES:
            raise self._corrupt("chunk.data", f"{len(data)} bytes", f"at most {MAX_CHUNK_BYTES} in one chunk")
        if chunk.offset != self._filled:
            raise self._corrupt("chunk.offset", chunk.offset, f"{self._filled}, the end of the chunk before")
        if end > self.nbytes:
            raise self._corrupt("chunk.data", f"{end} bytes", f"{self.nbytes} announced in the header")
        self._write(self._filled, data)
        self._filled = end
        self._crc = google_crc32c.extend(self._crc, data)

    def finish(self, crc32c: int) -> None:
        """Verify the whole.

        Raises:
            UploadCorrupt: when bytes are missing or the checksum differs.
        """
        if self._filled != self.nbytes:
            raise self._corrupt("chunk", f"{self._filled} bytes", f"{self.nbytes} announced in the header")
        if self._crc != crc32c:
            raise self._corrupt("crc32c", f"{self._crc:#010x} over the bytes received", f"{crc32c:#010x}")

    @staticmethod
    def _corrupt(field: str, found: object, expected: str) -> UploadCorrupt:
        return UploadCorrupt(
            f"{field} is {found}, expected {expected}; nothing has changed, send again",
            field=field,
            found=found,
            expected=expected,
        )


def layout(header: pb.ProgramHeader, *, cells: int, max_bytes: int) -> Layout:
    """Check a header from its numbers alone, and say how much memory its tensors take.

    Args:
        header: what the client sent.
        cells: most cells the device has.
        max_bytes: most bytes it takes.

    Raises:
        InvalidProgram: for any number, role, dtype or shape that is not what it must be.
        CapacityExceeded: when the program is larger than the device.
    """
    is_open = header.start == pb.START_UNSPECIFIED and not any(t.role in PROGRAM_ROLES for t in header.tensors)
    non_negative("damping", header.damping)
    non_negative("noise", header.noise)
    if not is_open and header.start not in (pb.START_KEEP, pb.START_DRIVE, pb.START_TENSOR):
        raise mismatch("start", header.start, "START_KEEP, START_DRIVE or START_TENSOR")
    if header.HasField("not_before"):
        non_negative("not_before", header.not_before)
    _check_reads(header.reads)
    if not header.blocks:
        raise mismatch("blocks", "empty", "one dense or kept block, or blocks of factors")
    shapes, own = _tensor_shapes(header)
    n, m = 0, 0
    for index, block in enumerate(header.blocks):
        kind = block.WhichOneof("kind") or ""
        if kind in WHOLE:
            if len(header.blocks) > 1:
                raise mismatch("blocks", f"{kind} block {index} among others", f"a {kind} block on its own")
            m, n = _shape_of_whole(block, shapes[index])
            break
        rows, columns = FACTORS[kind].shape_of(block, shapes[index])
        if index and rows != m:
            raise mismatch(f"blocks[{index}]", f"of {rows} rows", f"{m} rows like the blocks before it")
        m, n = rows, n + columns
    for role, shape in own.items():
        if shape != (n,):
            raise mismatch(f"{_name(role)}", f"of shape {shape}", f"shape ({n},), one value a parameter")
    if n > cells:
        raise CapacityExceeded(
            f"the program needs {n} cells, the device has {cells}", field="cells", found=n, expected=f"at most {cells}"
        )
    nbytes = sum(nbytes_of(spec) for spec in header.tensors)
    if nbytes > max_bytes:
        raise CapacityExceeded(
            f"the program's tensors take {nbytes} bytes, the device takes {max_bytes}",
            field="tensors",
            found=nbytes,
            expected=f"at most {max_bytes} bytes",
        )
    return Layout(cells=n, rows=m, nbytes=nbytes + 2 * n * WIDEST if is_open else nbytes, open=is_open)


def _shape_of_whole(block: pb.Block, shapes: Shapes) -> tuple[int, int]:
    if block.HasField("kept"):
        return Kept(block.kept.sequence, block.kept.parameters).shape
    return Dense.shape_of(shapes[pb.ROLE_MATRIX])


def kept_of(header: pb.ProgramHeader) -> pb.KeptBlock | None:
    """The kept block that a header consists of, if it does."""
    return header.blocks[0].kept if header.blocks and header.blocks[0].HasField("kept") else None


def complete(header: pb.ProgramHeader, late: pb.ProgramHeader) -> None:
    """Put what comes last into an open header; the result is for `layout` to check.

    Raises:
        ProtocolError: when it says more than what is open.
    """
    allowed = {"tensors", "damping", "noise", "start", "reads", "not_before", "readings"}
    if more := {field.name for field, _ in late.ListFields()} - allowed:
        raise _late(f"late.{min(more)}", "set", "set in the header alone")
    for index, spec in enumerate(late.tensors):
        if spec.role not in PROGRAM_ROLES:
            raise _late(f"late.tensors[{index}].role", _name(spec.role), "ROLE_DRIVE or ROLE_START")
    header.MergeFrom(late)


def _late(field: str, found: str, expected: str) -> ProtocolError:
    return ProtocolError(f"{field} is {found}; expected {expected}", field=field, found=found, expected=expected)


def _check_reads(reads: Sequence[pb.ScheduledRead]) -> None:
    if len(reads) > MAX_READS:
        raise mismatch("reads", f"{len(reads)} readings", f"at most {MAX_READS} with one program")
    for index, read in enumerate(reads):
        after = non_negative(f"reads[{index}].after", read.after)
        window = non_negative(f"reads[{index}].window", read.window)
        if window > after:
            raise mismatch(f"reads[{index}].window", window, f"at most {after}, the time under this program")


def _tensor_shapes(header: pb.ProgramHeader) -> tuple[list[Shapes], Shapes]:
    """Shapes by role of each block's tensors, and of the program's own, all of them known, in place and complete."""
    blocks: list[dict[Role, tuple[int, ...]]] = [{} for _ in header.blocks]
    own: dict[Role, tuple[int, ...]] = {}
    kinds = []
    for index, block in enumerate(header.blocks):
        kind = block.WhichOneof("kind") or "none"
        if kind not in DIMENSIONS:
            raise _unsupported(index, kind, DIMENSIONS)
        kinds.append(kind)
    for index, spec in enumerate(header.tensors):
        field, shape = f"tensors[{index}]", tuple(spec.shape)
        dtypes = ROLE_DTYPES.get(spec.role, FACTOR_DTYPES)
        if spec.dtype not in dtypes:
            raise mismatch(f"{field}.dtype", _dtype_name(spec.dtype), either(_dtype_name(d) for d in dtypes))
        expected: Mapping[Role, tuple[int, ...]]
        if spec.role in PROGRAM_ROLES:
            place, expected = own, {spec.role: (1,)}
        elif spec.block < len(blocks):
            place, expected = blocks[spec.block], DIMENSIONS[kinds[spec.block]]
        else:
            raise mismatch(f"{field}.block", spec.block, f"the index of one of {len(blocks)} blocks")
        if spec.role not in expected or spec.role in place:
            raise UnknownRole(
                f"{field}.role is {_name(spec.role)}, which is unknown, out of place or there twice",
                field=f"{field}.role",
                found=spec.role,
                expected=" or ".join(_name(role) for role in expected) or "no tensor of this block",
            )
        if len(shape) not in expected[spec.role] or 0 in shape:
            raise mismatch(f"{field}.shape", shape, f"{either(expected[spec.role])} extents, each at least 1")
        _check_scales(f"{field}.scales", spec)
        place[spec.role] = shape
    if own or header.start != pb.START_UNSPECIFIED:
        wanted = {pb.ROLE_DRIVE, pb.ROLE_START} if header.start == pb.START_TENSOR else {pb.ROLE_DRIVE}
        _check_complete("program", own, wanted)
    for index, (place, kind) in enumerate(zip(blocks, kinds, strict=True)):
        _check_complete(f"blocks[{index}]", place, set(DIMENSIONS[kind]))
    return list(blocks), own


def _check_scales(field: str, spec: pb.TensorSpec) -> None:
    counts = (1, spec.shape[0]) if spec.dtype == pb.DTYPE_INT16 else (0,)
    if len(spec.scales) not in counts:
        raise mismatch(field, f"{len(spec.scales)} numbers", f"{either(counts)} for {_dtype_name(spec.dtype)}")
    scales = np.array(spec.scales, dtype=np.float32)
    bad = ~(np.isfinite(scales) & (scales > 0))
    if bad.any():
        index = int(bad.argmax())
        raise mismatch(f"{field}[{index}]", scales[index], "a finite number above 0")


def check_features(header: pb.ProgramHeader, features: Collection[str]) -> None:
    """Refuse a header, which `layout` has accepted, that asks for more than a device can do.

    Args:
        header: what the client sent.
        features: names of block kinds and precisions.

    Raises:
        UnsupportedBlock: for a kind of block.
        InvalidProgram: for a precision.
    """
    for index, block in enumerate(header.blocks):
        kind = block.WhichOneof("kind") or ""
        if kind not in features:
            raise _unsupported(index, kind, [name for name in DIMENSIONS if name in features])
    for index, spec in enumerate(header.tensors):
        precision = NARROW.get(DTYPES[spec.dtype])
        if precision is not None and precision not in features:
            known = ["float32", *(name for name in NARROW.values() if name in features)]
            raise mismatch(f"tensors[{index}].dtype", precision, f"a precision that this device takes: {either(known)}")


def _unsupported(index: int, kind: str, known: Iterable[str]) -> UnsupportedBlock:
    return UnsupportedBlock(
        f"blocks[{index}] is of a kind this device does not know",
        field=f"blocks[{index}]",
        found=kind,
        expected=either(known),
    )


def _check_complete(name: str, found: Iterable[Role], wanted: set[Role]) -> None:
    if set(found) != wanted:
        names = " and ".join(sorted(_name(role) for role in wanted))
        raise mismatch(f"{name} tensors", sorted(_name(role) for role in found) or "none", names)


def _name(role: Role) -> str:
    return pb.Role.Name(role) if role in pb.Role.values() else f"role {role}"


def _dtype_name(dtype: pb.DType.ValueType) -> str:
    return pb.DType.Name(dtype) if dtype in pb.DType.values() else f"dtype {dtype}"


def nbytes_of(spec: pb.TensorSpec) -> int:
    """Bytes of a tensor on the wire."""
    return prod(spec.shape) * DTYPES[spec.dtype].itemsize


def tensor_from(spec: pb.TensorSpec, buffer: memoryview, offset: int = 0) -> Tensor:
    """The tensor behind its bytes: a view of `buffer` where the alignment allows, else a copy."""
    dtype = DTYPES[spec.dtype]
    flat = np.frombuffer(buffer, dtype=np.uint8, count=nbytes_of(spec), offset=offset)
    if offset % dtype.itemsize:
        flat = flat.copy()
    return torch.from_numpy(flat).view(dtype).view(*spec.shape)


def program_from(header: pb.ProgramHeader, buffer: memoryview, running: Program | None = None) -> Program:
    """The program behind a header that `layout` has accepted and its bytes; tensors are views of `buffer`, or decoded.

    Args:
        header: what the client sent.
        buffer: the tensors' bytes.
        running: whose operator a program may keep; it then has the very object.

    Raises:
        InvalidProgram: when an operator refuses what the layout let pass, for instance two dtypes in one block.
        OperatorGone: when the program keeps an operator and none runs.
    """
    tensors = []
    offset = 0
    for spec in header.tensors:
        tensors.append(decode(tensor_from(spec, buffer, offset), list(spec.scales)))
        offset += nbytes_of(spec)
    return program_of(header, tensors, running)


def program_of(header: pb.ProgramHeader, tensors: Sequence[Tensor], running: Program | None = None) -> Program:
    """The program behind a header and its decoded tensors, which are not copied; otherwise as `program_from`."""
    blocks: list[dict[Role, Tensor]] = [{} for _ in header.blocks]
    own: dict[Role, Tensor] = {}
    for spec, tensor in zip(header.tensors, tensors, strict=True):
        place = own if spec.role in PROGRAM_ROLES else blocks[spec.block]
        place[spec.role] = tensor
    operator: Operator
    if kept := kept_of(header):
        if running is None:
            raise OperatorGone("the device holds no operator that could be kept; send it", field="kept", found="none")
        if running.cells != kept.parameters:
            raise mismatch("kept.parameters", kept.parameters, f"{running.cells}, as the device's operator has")
        operator = running.operator
    elif header.blocks[0].WhichOneof("kind") == "dense":
        operator = Dense(blocks[0][pb.ROLE_MATRIX])
    else:
        factors = [
            FACTORS[block.WhichOneof("kind") or ""].from_wire(block, tensors)
            for block, tensors in zip(header.blocks, blocks, strict=True)
        ]
        operator = factors[0] if len(factors) == 1 else LayerRows(factors)
    start: Any = own.get(pb.ROLE_START, "keep" if header.start == pb.START_KEEP else "drive")
    if kept and running:
        precision = running.precision
    else:
        narrow = (NARROW.get(DTYPES[spec.dtype]) for spec in header.tensors)
        precision = next((name for name in narrow if name is not None), None)
    return Program(
        operator, own[pb.ROLE_DRIVE], damping=header.damping, noise=header.noise, start=start, precision=precision
    )
