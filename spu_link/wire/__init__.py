"""Programs and vectors as bytes: header, tensors, chunks and checksum.

An upload is a header that describes every tensor, the tensors' raw little-endian bytes one after the other in chunks,
and a CRC-32C over all of them. A header may describe the operator alone; what the program is otherwise then comes last.
`layout` checks a header from its numbers alone, before a byte of memory is reserved.
"""

from spu_link.wire.checks import Layout, Limits, check_features, layout
from spu_link.wire.chunking import CHUNK_BYTES, MAX_CHUNK_BYTES, Assembler, chunks, numbered, writer
from spu_link.wire.programs import (
    complete,
    header_of,
    kept_of,
    late_header,
    operator_header,
    parse_header,
    program_from,
    program_of,
)
from spu_link.wire.saved import restore_operator, restore_program, save_operator, save_program
from spu_link.wire.tables import DTYPES, WIDEST
from spu_link.wire.tensors import byte_views, nbytes_of, tensor_from, tensor_spec

__all__ = [
    "CHUNK_BYTES",
    "DTYPES",
    "MAX_CHUNK_BYTES",
    "WIDEST",
    "Assembler",
    "Layout",
    "Limits",
    "byte_views",
    "check_features",
    "chunks",
    "complete",
    "header_of",
    "kept_of",
    "late_header",
    "layout",
    "nbytes_of",
    "numbered",
    "operator_header",
    "parse_header",
    "program_from",
    "program_of",
    "restore_operator",
    "restore_program",
    "save_operator",
    "save_program",
    "tensor_from",
    "tensor_spec",
    "writer",
]
