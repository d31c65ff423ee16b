"""Programs of two data-parallel processes; a module of its own, so that `spawn` can import it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from host_client import KFAC, NGD, TNGD, connect


def _train(optimizer_of: Callable[[nn.Module, nn.Module], torch.optim.Optimizer], wrap: bool, average: bool) -> None:
    """Two steps on data that differ by rank."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model: nn.Module = DistributedDataParallel(inner) if wrap else inner
    criterion = nn.CrossEntropyLoss()
    optimizer = optimizer_of(model, criterion)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(dist.get_rank()))
    for _ in range(2):
        optimizer.zero_grad()
        criterion(model(x), torch.arange(6) % 3).backward()
        if average:
            for p in inner.parameters():
                assert p.grad is not None
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        optimizer.step()


def _on_a_device(model: nn.Module, criterion: nn.Module) -> torch.optim.Optimizer:
    session = connect("inproc:", clock="stepped", seed=0).open_session()
    return TNGD(model, criterion, session, lr=0.1, damping=0.1, analog_time=10.0)


WAYS: dict[str, Callable[[], None]] = {
    "DistributedDataParallel, NGD": lambda: _train(lambda m, c: NGD(m, c, lr=0.1, damping=0.1), True, False),
    "DistributedDataParallel, KFAC": lambda: _train(lambda m, c: KFAC(m, c, lr=0.1, damping=0.1), True, False),
    "DistributedDataParallel, TNGD": lambda: _train(_on_a_device, wrap=True, average=False),
    "gradients averaged by hand": lambda: _train(lambda m, c: NGD(m, c, lr=0.1, damping=0.1), False, True),
}


def work(rank: int, folder: str) -> None:
    """Join a gloo group of two, do everything, and let rank 0 write down what was raised, by way."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    raised: dict[str, tuple[list[str], str] | None] = {}
    for name, train in WAYS.items():
        error: Any = None
        try:
            train()
        except Exception as caught:  # noqa: BLE001 - the tests look at its type
            error = ([one.__name__ for one in type(caught).__mro__], str(caught))
        raised[name] = error
        dist.barrier()
    if rank == 0:
        Path(folder, "raised").write_bytes(pickle.dumps(raised))
    dist.destroy_process_group()
