import os
import stat
from pathlib import Path

import numpy as np
import pytest

from spu_lab.tasks.cache import cache_folder, read_arrays, write_arrays


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TNGD_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_without_it_the_folder_is_the_platforms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TNGD_CACHE", raising=False)
    assert cache_folder().name == "tngd"


def test_arrays_come_back_and_others_may_read_them(tmp_path: Path) -> None:
    path = tmp_path / "made" / "data.npz"
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    write_arrays(path, {"pixels": pixels, "labels": np.array([3, 4], dtype=np.uint8)})
    back = read_arrays(path)
    assert (back["pixels"] == pixels).all()
    assert back["labels"].tolist() == [3, 4]
    assert list(path.parent.iterdir()) == [path]
    if os.name == "posix":
        mask = os.umask(0o022)
        os.umask(mask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.npz"
    write_arrays(path, {"old": np.zeros(1)})

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        write_arrays(path, {"new": np.zeros(1)})
    assert list(read_arrays(path)) == ["old"]
    assert list(tmp_path.iterdir()) == [path]
