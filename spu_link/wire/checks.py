"""A header, checked from its numbers alone, before a byte of memory is reserved."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from spu_link.errors import CapacityExceeded, UnknownRole, UnsupportedBlock, either, mismatch
from spu_link.operators.base import BlockFactor, Shapes
from spu_link.precision import NARROW
from spu_link.program import non_negative
from spu_link.wire.programs import kept_of
from spu_link.wire.tables import (
    BLOCKS,
    DIMENSIONS,
    DTYPES,
    FACTOR_DTYPES,
    OPERAND_ROLES,
    PROGRAM_ROLES,
    ROLE_DTYPES,
    WIDEST,
    WireRole,
    dtype_name,
    geometry_of,
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
        header: the header for the device's driver, without session and places, serialized.
        cells: N.
        nbytes: bytes of all tensors; for an open header those of the operator, and the max that may follow.
        open: whether the header describes the operator alone; then what follows means nothing.
        damping, noise: λ and κ₀.
        start: start policy, or ``"tensor"``.
        dtype: element type of the drive, and of readings.
        kept: number of the program whose operator it keeps; None where it has its own.
        reads: time after the commit and length of the average of each reading, in τ, in the order of times.
        not_before: earliest device time, in τ.
    """

    header: bytes
    cells: int
    nbytes: int
    open: bool
    damping: float
    noise: float
    start: str
    dtype: torch.dtype
    kept: int | None
    reads: tuple[tuple[float, float], ...]
    not_before: float


class Limits(TypedDict):
    """The arguments of `layout` that a device gives."""

    cells: int
    max_bytes: int
    features: Collection[str]


def layout(header: pb.ProgramHeader, *, cells: int, max_bytes: int, features: Collection[str] | None = None) -> Layout:
    """Check a header from its numbers alone, and say how much memory its tensors take.

    Args:
        header: what the client sent.
        cells: cells that the device has.
        max_bytes: largest number of bytes it takes.
        features: what it can do, see `check_features`; None for everything.

    Raises:
        InvalidProgram: for any number, role, dtype or shape that is not what it must be.
        CapacityExceeded: when the program is larger than the device.
        UnsupportedBlock: for a kind of block that the device does not take.
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
    n = _cells(header, shapes)
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
    if features is not None:
        check_features(header, features)
    alone = pb.ProgramHeader()
    alone.CopyFrom(header)
    for field in ("session", "upload", "readings"):
        alone.ClearField(field)
    kept = kept_of(header)
    return Layout(
        header=alone.SerializeToString(),
        cells=n,
        nbytes=nbytes + 2 * n * WIDEST if is_open else nbytes,
        open=is_open,
        damping=header.damping,
        noise=header.noise,
        start=pb.Start.Name(header.start).removeprefix("START_").lower(),
        dtype=next((DTYPES[spec.dtype] for spec in header.tensors if spec.role == pb.ROLE_DRIVE), torch.float32),
        kept=None if kept is None else kept.sequence,
        reads=tuple((read.after, read.window) for read in sorted(header.reads, key=lambda read: read.after)),
        not_before=header.not_before,
    )


def _cells(header: pb.ProgramHeader, shapes: Sequence[Shapes]) -> int:
    """N of the blocks side by side, or of the one that is an operator alone."""
    m, n = 0, 0
    for index, block in enumerate(header.blocks):
        kind = block.WhichOneof("kind") or ""
        if not issubclass(BLOCKS[kind], BlockFactor) and len(header.blocks) > 1:
            raise mismatch("blocks", f"{kind} block {index} among others", f"a {kind} block on its own")
        rows, columns = BLOCKS[kind].shape_of(geometry_of(block), shapes[index])
        if index and rows != m:
            raise mismatch(f"blocks[{index}]", f"of {rows} rows", f"{m} rows like the blocks before it")
        m, n = rows, n + columns
    return n


def _check_reads(reads: Sequence[pb.ScheduledRead]) -> None:
    if len(reads) > MAX_READS:
        raise mismatch("reads", f"{len(reads)} readings", f"at most {MAX_READS} with one program")
    for index, read in enumerate(reads):
        after = non_negative(f"reads[{index}].after", read.after)
        window = non_negative(f"reads[{index}].window", read.window)
        if window > after:
            raise mismatch(f"reads[{index}].window", window, f"at most {after}, the time under this program")


def _tensor_shapes(header: pb.ProgramHeader) -> tuple[list[Shapes], dict[WireRole, tuple[int, ...]]]:
    """Shapes by role of each block's tensors, and of the program's own, all of them known, in place and complete."""
    blocks: list[dict[WireRole, tuple[int, ...]]] = [{} for _ in header.blocks]
    own: dict[WireRole, tuple[int, ...]] = {}
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
        expected: Mapping[WireRole, tuple[int, ...]]
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
    return [{OPERAND_ROLES[role]: shape for role, shape in place.items()} for place in blocks], own


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


def _check_complete(name: str, found: Iterable[WireRole], wanted: set[WireRole]) -> None:
    if set(found) != wanted:
        names = " and ".join(sorted(role_name(role) for role in wanted))
        raise mismatch(f"{name} tensors", sorted(role_name(role) for role in found) or "none", names)
