"""Workers of a loader connect for themselves, while the process that loads uses the device."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from host_client import connect
from spu_link.operators import Rows
from tests.daemon import Daemon
from tests.system.processes.workers import Solved

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:os.fork\(\) was called:RuntimeWarning"),  # JAX's, in processes that have it
]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # for one processor
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_two_workers_connect_however_they_are_started(stepped: Daemon, method: str) -> None:
    with connect(stepped.address, timeout=20.0) as spu, spu.session() as session:
        batches = []
        for batch in DataLoader(Solved(stepped.address), 2, num_workers=2, multiprocessing_context=method):
            batches.append(batch)
            session.solve(Rows(torch.ones(1, 3)), torch.ones(3), damping=1.0, analog_time=50.0)
    torch.testing.assert_close(torch.cat(batches), torch.full((4, 3), 0.25))
