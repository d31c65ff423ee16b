"""A device under a known program, which must have survived whatever a test did to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from host_client import Session, connect
from spu_link.operators import Rows
from tests.daemon import Daemon
from tests.system.raw import Raw, eventually

CELLS = 3
A = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
B = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
DAMPING = 0.5
LONG = 60.0
"""Device time, in τ, after which the state is the solution to 1e-12: the smallest eigenvalue is the damping."""


def solution(b: torch.Tensor, damping: float) -> torch.Tensor:
    return torch.linalg.solve(A.T @ A + damping * torch.eye(CELLS, dtype=torch.float64), b)


class SteadyDevice:
    """A daemon whose device rests at the solution of a program without noise, held by nobody."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.address = daemon.address
        self.settle()

    def settle(self) -> None:
        """Let it rest there again, after a program of a test's own."""
        with self.session() as session:
            reading = session.solve(Rows(A), B, damping=DAMPING, analog_time=LONG)
        self.sequence = reading.sequence
        torch.testing.assert_close(reading.value, solution(B, DAMPING))

    @contextmanager
    def session(self, ttl: float = 30.0) -> Iterator[Session]:
        """A session by the public API."""
        with connect(self.address, timeout=20.0) as spu, spu.session(ttl=ttl) as session:
            yield session

    @contextmanager
    def raw(self, ttl: float | None = 30.0) -> Iterator[Raw]:
        """A client by hand; with a time to live, in a session."""
        with Raw(self.address) as raw:
            if ttl is not None:
                raw.open(ttl)
            yield raw

    def assert_unharmed(self) -> None:
        """The old program is in force, its state is unchanged, no upload has left memory behind, and work goes on."""
        with connect(self.address, timeout=20.0) as spu:
            eventually(lambda: spu.info.session_holder is None, "nobody holds the device")
            assert (spu.info.state, spu.info.sequence) == ("running", self.sequence)
            with spu.session() as session:
                reading = session.read()
                assert reading.sequence == self.sequence
                torch.testing.assert_close(reading.value, solution(B, DAMPING), rtol=1e-9, atol=1e-9)
                fresh = session.solve(Rows(A), -B, damping=2.0, analog_time=LONG)
                torch.testing.assert_close(fresh.value, solution(-B, 2.0), rtol=1e-9, atol=1e-9)
                assert fresh.sequence == self.sequence + 1
        eventually(lambda: not uploads_in(self.daemon), "no upload's memory is left")


def uploads_in(daemon: Daemon) -> list[str]:
    """Open descriptors of uploads' memory in the daemon's own process."""
    return memory_in(daemon, "spu-program")


def memory_in(daemon: Daemon, name: str) -> list[str]:
    """Open descriptors of memory files of a name in the daemon's own process."""
    links = []
    for descriptor in Path(f"/proc/{psutil.Process(daemon.process.pid).pid}/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
    return [link for link in links if name in link]
