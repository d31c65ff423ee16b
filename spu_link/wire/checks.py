"""A header, checked from its numbers alone, before a byte of memory is reserved."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spu_link.errors import CapacityExceeded, UnknownRole, UnsupportedBlock
from spu_link.operators import Dense, Kept
from spu_link.operators.base import Role, Shapes, either, mismatch
from spu_link.precision import NARROW
from spu_link.program import non_negative
from spu_link.wire.tables import (
    DIMENSIONS,
    DTYPES,
    FACTOR_DTYPES,
    FACTORS,
    PROGRAM_ROLES,
    ROLE_DTYPES,
    WHOLE,
    WIDEST,
    dtype_name,
    role_name,
)
from spu_link.wire.tensors import nbytes_of
from tngd.spu.v1 import spu_pb2 as pb

MAX_READS = 64
"""Maximum number of readings scheduled with one program."""


@dataclass(frozen=True)
class Layout:
    """Contents that a header announces.

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


def layout(header: pb.ProgramHeader, *, cells: int, max_bytes: int) -> Layout:
    """Check a header from its numbers alone, and say how much memory its tensors take.

    Args:
        header: what the client sent.
        cells: cells that the device has.
        max_bytes: largest number of bytes it takes.

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
    m, n = _shape(header, shapes)
    for role, shape in own.items():
        if shape != (n,):
            raise mismatch(role_name(role), f"of shape {shape}", f"shape ({n},), one value a parameter")
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


def _shape(header: pb.ProgramHeader, shapes: Sequence[Shapes]) -> tuple[int, int]:
    """(m, N) of the blocks side by side, or of the one that is an operator alone."""
    m, n = 0, 0
    for index, block in enumerate(header.blocks):
        kind = block.WhichOneof("kind") or ""
        if kind in WHOLE and len(header.blocks) > 1:
            raise mismatch("blocks", f"{kind} block {index} among others", f"a {kind} block on its own")
        if kind == Kept.kind:
            return Kept(block.kept.sequence, block.kept.parameters).shape
        if kind == Dense.kind:
            return Dense.shape_of(shapes[index][pb.ROLE_MATRIX])
        rows, columns = FACTORS[kind].shape_of(block, shapes[index])
        if index and rows != m:
            raise mismatch(f"blocks[{index}]", f"of {rows} rows", f"{m} rows like the blocks before it")
        m, n = rows, n + columns
    return m, n


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
            raise mismatch(f"{field}.dtype", dtype_name(spec.dtype), either(dtype_name(d) for d in dtypes))
        expected: Mapping[Role, tuple[int, ...]]
        if spec.role in PROGRAM_ROLES:
            place, expected = own, {spec.role: (1,)}
        elif spec.block < len(blocks):
            place, expected = blocks[spec.block], DIMENSIONS[kinds[spec.block]]
        else:
            raise mismatch(f"{field}.block", spec.block, f"the index of one of {len(blocks)} blocks")
        if spec.role not in expected or spec.role in place:
            raise UnknownRole(
                f"{field}.role is {role_name(spec.role)}, which is unknown, out of place or there twice",
                field=f"{field}.role",
                found=spec.role,
                expected=" or ".join(role_name(role) for role in expected) or "no tensor of this block",
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
        raise mismatch(field, f"{len(spec.scales)} numbers", f"{either(counts)} for {dtype_name(spec.dtype)}")
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
        names = " and ".join(sorted(role_name(role) for role in wanted))
        raise mismatch(f"{name} tensors", sorted(role_name(role) for role in found) or "none", names)
