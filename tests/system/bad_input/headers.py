"""Wrong headers: how each is spoilt, which error says so, and what that names."""

from __future__ import annotations

from spu_link.errors import CapacityExceeded, InvalidProgram, UnknownRole, UnsupportedBlock
from tests.system.bad_input.programs import TENSOR
from tngd.spu.v1 import spu_pb2 as pb

NAN, INF = float("nan"), float("inf")


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
