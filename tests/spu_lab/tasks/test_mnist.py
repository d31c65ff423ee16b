import gzip
import hashlib
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from spu_lab.tasks import mnist as module
from spu_lab.tasks import mnist_sources as sources
from spu_lab.tasks.mnist import DataUnavailable, digits, mnist, reference_network
from spu_lab.tasks.mnist_sources import Bytes, read_idx, read_wheel
from spu_lab.tasks.wheels import SourceFailed

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
LABELS = np.arange(10, dtype=np.uint8)
SHA256 = hashlib.sha256(PIXELS.tobytes() + LABELS.tobytes()).hexdigest()


def wheel(path: Path) -> str:
    """A wheel in the form of the real one, with ten digits in three splits; the SHA-256 of its data file."""
    flat = (PIXELS.reshape(10, 784) / 256).astype(np.float32)
    splits = tuple((flat[part], LABELS[part].astype(np.int64)) for part in (slice(6), slice(6, 8), slice(8, 10)))
    packed = gzip.compress(pickle.dumps(splits, protocol=4))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(sources.WHEEL_MEMBER, packed)
    return hashlib.sha256(packed).hexdigest()


def test_a_wheel_returns_the_bytes_exactly(tmp_path: Path) -> None:
    sha256 = wheel(tmp_path / "a.whl")
    pixels, labels = read_wheel(tmp_path / "a.whl", sha256)
    assert pixels.dtype == labels.dtype == np.uint8
    assert (pixels == PIXELS).all()
    assert (labels == LABELS).all()


def test_a_wheel_with_other_data_is_refused_and_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path / "a.whl")
    monkeypatch.setattr(sources, "load_arrays", lambda _: pytest.fail("unpickled"))
    with pytest.raises(SourceFailed, match=r"mnist\.pkl\.gz has SHA-256 .*, expected 00ff: refused"):
        read_wheel(tmp_path / "a.whl", "00ff")


def test_a_wheel_without_the_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"no archive")
    with pytest.raises(SourceFailed, match="does not hold"):
        read_wheel(tmp_path / "a.whl", "00ff")


def test_idx_files_are_read_by_their_header() -> None:
    header = struct.pack(">HBB3I", 0, 8, 3, 10, 28, 28)
    assert (read_idx(gzip.compress(header + PIXELS.tobytes())) == PIXELS).all()
    with pytest.raises(SourceFailed, match="not an IDX file"):
        read_idx(gzip.compress(header + PIXELS.tobytes()[:-1]))


def test_a_mirror_that_gives_other_bytes_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in sources.IDX_SHA256:
        (tmp_path / name).write_bytes(b"something else")
    monkeypatch.setattr(sources, "IDX_MIRRORS", (f"{tmp_path.as_uri()}/", "file:///nonexistent/"))
    with pytest.raises(SourceFailed, match=r"has SHA-256 .*: refused; file:///nonexistent"):
        sources.from_idx()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Ten digits are the whole of MNIST, and the cache is empty."""
    monkeypatch.setenv("TNGD_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "SHA256", SHA256)
    return tmp_path / "mnist.npz"


def broken() -> tuple[Bytes, Bytes]:
    raise SourceFailed("the cable is cut")


def wrong() -> tuple[Bytes, Bytes]:
    return PIXELS[::-1].copy(), LABELS


def right() -> tuple[Bytes, Bytes]:
    return PIXELS, LABELS


def test_the_first_source_with_the_right_data_is_cached(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SOURCES", {"one": broken, "two": wrong, "three": right})
    assert (digits()[0] == PIXELS).all()
    assert small.exists()
    monkeypatch.setattr(module, "SOURCES", {})
    pixels, labels = digits()
    assert (pixels == PIXELS).all()
    assert (labels == LABELS).all()


def test_a_broken_cache_is_reported_and_replaced(
    small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small.write_bytes(b"half a file")
    monkeypatch.setattr(module, "SOURCES", {"one": right})
    assert (digits()[0] == PIXELS).all()
    assert "is not used" in caplog.text
    caplog.clear()
    digits()
    assert not caplog.text


def test_without_any_source_the_error_names_each_reason_and_the_way_out(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SOURCES", {"one": broken, "two": wrong})
    with pytest.raises(DataUnavailable, match=r"(?s)one: the cable is cut.*two: .*refused.*TNGD_CACHE"):
        digits()
    assert not small.exists()


@pytest.mark.parametrize(("train_size", "test_size"), [(0, 10), (50_001, 10), (10, 10_001)])
def test_more_images_than_there_are_is_an_error(train_size: int, test_size: int) -> None:
    with pytest.raises(ValueError, match="MNIST has 1 to"):
        mnist(train_size, test_size)


def test_the_reference_network_has_the_parameters_that_figures_are_quoted_for() -> None:
    network = reference_network()
    assert sum(p.numel() for p in network.parameters()) == 105_866
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
