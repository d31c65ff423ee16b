"""Saved states as bytes: tensors in the safetensors format.

In addition to the tensors there are two more: `about`, JSON in UTF-8, and `check`, a CRC-32C over everything else. What
is read back is untrusted: nothing of it is used that has not been checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import google_crc32c
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from spu_link import wire
from spu_link.errors import InvalidProgram, mismatch

ABOUT, CHECK = "about", "check"

M = TypeVar("M", bound=BaseModel)


def pack(about: BaseModel, tensors: Mapping[str, Tensor]) -> bytes:
    """A state as bytes.

    Args:
        about: the parts of it that are no tensors.
        tensors: by name; not `ABOUT` or `CHECK`.
    """
    text = bytearray(json.dumps(about.model_dump(), sort_keys=True).encode())
    named = {**tensors, ABOUT: torch.frombuffer(text, dtype=torch.uint8)}
    return save({**named, CHECK: _check(named)})


def unpack(data: bytes | bytearray | memoryview, model: type[M]) -> tuple[M, dict[str, Tensor]]:
    """The parts of a state that are no tensors, and its tensors.

    Args:
        data: what `pack` gave, or so it is said.
        model: class of what is no tensor.

    Raises:
        InvalidProgram: when they are something else.
    """
    try:
        tensors = load(bytes(data))
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise _invalid("state", f"{len(data)} bytes of something else ({error})") from None
    check, about = tensors.pop(CHECK, None), tensors.get(ABOUT)
    if about is None or about.dtype != torch.uint8 or check is None:
        raise _invalid("state", f"a file of tensors {sorted(tensors)[:4]}")
    if not torch.equal(check, _check(tensors)):
        raise _invalid("state.check", "wrong: the state has been changed or cut since it was saved")
    return validated(model, bytes(tensors.pop(ABOUT).numpy())), tensors


def validated(model: type[M], values: bytes | Mapping[str, Any]) -> M:
    """Values of a state, in JSON or by name, as they must be.

    Raises:
        InvalidProgram: naming the first that is not.
    """
    try:
        return model.model_validate_json(values) if isinstance(values, bytes) else model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["state", *map(str, first["loc"])])
        raise mismatch(field, repr(first["input"])[:100], first["msg"]) from None


def _check(tensors: Mapping[str, Tensor]) -> Tensor:
    """CRC-32C over names, kinds and bytes of the tensors."""
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        crc = google_crc32c.extend(crc, f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for piece in wire.chunks(wire.byte_views([tensor])):
            crc = google_crc32c.extend(crc, piece)
    return torch.frombuffer(bytearray(crc.to_bytes(4, "little")), dtype=torch.uint8)


def _invalid(field: str, found: str) -> InvalidProgram:
    return mismatch(field, found, "what save_state of such a device gave")
