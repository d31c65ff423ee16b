"""Cache of downloaded data between runs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

VARIABLE = "TNGD_CACHE"
"""Environment variable that names the cache folder."""


def cache_folder() -> Path:
    """Folder for downloads: ``$TNGD_CACHE``, else ``tngd`` in the platform's place for caches. It may not exist yet."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    return user_cache_path("tngd", appauthor=False, opinion=False)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as a compressed ``.npz`` that is there whole or not at all, whoever else writes it.

    Raises:
        OSError: when the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a ``.npz`` file by name.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: when the file is missing or broken.
    """
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
