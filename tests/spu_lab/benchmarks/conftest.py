"""Benchmarks at their smallest, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

from spu_lab.benchmarks import capture, endurance, kept, overlap, scale, solve, step
from spu_lab.benchmarks.timing import Subjects, turn
from spu_lab.tasks.mnist import reference_network, unit_interval
from spu_lab.tasks.task import Examples, Task
from tests.daemon import Daemon


def noise_task() -> Task:
    """Random images in place of MNIST's, for the reference network."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (64, 1, 28, 28), generator=generator, dtype=torch.uint8)
    examples = Examples(pixels, torch.arange(64) % 10)
    return Task("noise", 10, reference_network, nn.CrossEntropyLoss(), unit_interval, examples, examples, examples)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sides and measurements run here, once each, and daemons are forks: programs take longer to start than to run."""
    threads = torch.get_num_threads()

    def medians(sides: Mapping[str, Callable[[], Subjects]], **_: int) -> dict[str, float]:
        return {
            f"{side}_{name}": median(times)
            for side, make in sides.items()
            for name, times in turn(make(), repeats=1, warmup=0).items()
        }

    def alone(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    daemons: dict[str, Daemon] = {}

    @contextmanager
    def local_daemon(*, clock: str = "free", options: Sequence[str] = (), threads: int | None = None) -> Iterator[str]:
        folder: Path = tmp_path_factory.mktemp("d")
        with Daemon(folder / "s", "--clock", clock, *options) as one:
            daemons[one.address] = one
            yield one.address

    def family(address: str) -> list[int]:
        return [process.pid for process in daemons[address].processes()]

    for module in (kept, overlap, step):
        monkeypatch.setattr(module, "local_daemon", local_daemon)
    monkeypatch.setattr(overlap, "family", family)  # which looks for the command
    for module in (capture, endurance, overlap, scale, solve, step):
        for name, stand_in in {"medians": medians, "alone": alone}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stand_in)
    yield
    torch.set_num_threads(threads)
