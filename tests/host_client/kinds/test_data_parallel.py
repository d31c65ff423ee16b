"""Kind C: several data-parallel processes, whose gradients are averaged while each would have an F of its own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TypeAlias

import pytest
import torch.multiprocessing as mp

from tests.forked import context
from tests.host_client.kinds.workers import WAYS, work

Raised: TypeAlias = dict[str, tuple[list[str], str] | None]


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> Raised:
    """Errors of two gloo processes, by what they did; once for all tests."""
    folder = tmp_path_factory.mktemp("group")
    mp.start_processes(work, args=(str(folder),), nprocs=2, start_method=context.get_start_method())
    found: Raised = pickle.loads(Path(folder, "raised").read_bytes())
    return found


@pytest.mark.parametrize("way", WAYS)
def test_more_than_one_rank_is_refused_with_the_remedy(way: str, raised: Raised) -> None:
    error = raised[way]
    assert error is not None, "two steps were taken, each rank with an F of its own"
    classes, message = error
    assert "RuntimeError" in classes
    assert "rank" in message or "process" in message
    assert "2" in message, "the number of ranks found"
