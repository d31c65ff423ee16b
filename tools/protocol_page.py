"""The generated parts of docs/protocol.md: calls, messages and enumerations, from the sources in protos/."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

from tools.pages import escaped, table

PAGE = "protocol.md"
PROTOS = Path(__file__).resolve().parent.parent / "protos"
SOURCE = "tngd/spu/v1/spu.proto"

Position = tuple[int, ...]
"""Position of a declaration: field numbers of FileDescriptorProto and indices."""


@cache
def source() -> tuple[FileDescriptorProto, dict[Position, str]]:
    """Return the parsed source, and the comment of each declaration.

    Raises:
        RuntimeError: when protoc refuses the source; its own message is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        arguments = ["protoc", f"-I{PROTOS}", f"--descriptor_set_out={out}", "--include_source_info", SOURCE]
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"protoc refused {SOURCE}")
        (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    locations = file.source_code_info.location
    return file, {tuple(place.path): place.leading_comments or place.trailing_comments for place in locations}


def comment(path: Position) -> str:
    """Return the comment of a declaration as Markdown, a line for each paragraph."""
    lines = [line.removeprefix(" ") for line in source()[1].get(path, "").splitlines()]
    paragraphs = "\n".join(lines).strip().split("\n\n")
    return "\n\n".join(escaped(" ".join(paragraph.split())) for paragraph in paragraphs)


def calls() -> str:
    """Return a section for each call of each service."""
    sections = []
    for i, service in enumerate(source()[0].service):
        for k, method in enumerate(service.method):
            request = _type_link(method.input_type, streamed=method.client_streaming)
            response = _type_link(method.output_type, streamed=method.server_streaming)
            sections.append(_section(method.name, f"{request} → {response}", comment((6, i, 2, k))))
    return "\n".join(sections)


def messages() -> str:
    """Return a section for each message, those within others too."""
    file = source()[0]
    return "\n".join(text for i, message in enumerate(file.message_type) for text in _message(message, (4, i)))


def _message(message: DescriptorProto, path: Position, prefix: str = "") -> Iterator[str]:
    rows = [
        (f"`{field.name}`", str(field.number), _field_type(message, field), comment((*path, 2, k)).replace("\n\n", " "))
        for k, field in enumerate(message.field)
    ]
    body = table(("field", "number", "type", "meaning"), rows) if rows else "Empty.\n"
    yield _section(prefix + message.name, comment(path), body.rstrip("\n"))
    for k, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(nested, (*path, 3, k), f"{prefix}{message.name}.")


def enumerations() -> str:
    """Return a section for each enumeration."""
    return "\n".join(_enumeration(kind, (5, i)) for i, kind in enumerate(source()[0].enum_type))


def _enumeration(kind: EnumDescriptorProto, path: Position) -> str:
    rows = [(f"`{value.name}`", str(value.number), comment((*path, 2, k))) for k, value in enumerate(kind.value)]
    return _section(kind.name, comment(path), table(("value", "number", "meaning"), rows).rstrip("\n"))


def _section(name: str, *paragraphs: str) -> str:
    return "\n\n".join([f"### `{name}`", *(text for text in paragraphs if text)]) + "\n"


def _field_type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    name = _type_link(field.type_name) if field.type_name else _scalar(field)
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
            key, value = nested.field
            return f"map from `{_scalar(key)}` to `{_scalar(value)}`"
    name = name if field.type_name else f"`{name}`"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {name}"
    if field.proto3_optional:
        return f"optional {name}"
    if field.HasField("oneof_index"):
        return f"{name}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return name


def _scalar(field: FieldDescriptorProto) -> str:
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _type_link(type_name: str, *, streamed: bool = False) -> str:
    name = type_name.removeprefix(f".{source()[0].package}.")
    return f"{'stream of ' if streamed else ''}[`{name}`](#{name.lower().replace('.', '')})"


TABLES = {"calls": calls, "messages": messages, "enumerations": enumerations}
