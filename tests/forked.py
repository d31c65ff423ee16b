"""`spu-server` in a process of its own, without the seconds that it takes to import torch."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "torch._dynamo",  # which torch imports with the first optimizer
        "host_client.blocking",
        "host_client.optimizers",
        "spu_server.cli",
        "spu_server.daemon",
        "spu_server.drivers.emulator",
        "spu_server.drivers.preload",  # last, as it excludes all that is there from garbage collection
    ]
)


class Forked:
    """``spu-server ARGUMENTS``, forked from a process that has imported everything and used nothing.

    To be used as a `subprocess.Popen`. Its driver is a fork of the same process, and no child of the daemon.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        ours, theirs = context.Pipe(duplex=False)
        forkserver.ensure_running()
        address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
        command = ["spu-server", *arguments]
        self._process = context.Process(target=_run, args=(command, dict(os.environ), str(log), theirs, address))
        self._process.start()
        self.stdout = open(os.dup(ours.fileno()))  # noqa: SIM115 - for the caller to close
        ours.close()
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Exit code, as `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, once it has ended.

        Raises:
            TimeoutExpired: when it has not ended after so many seconds.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("spu-server", timeout or 0.0)
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(command: list[str], environment: dict[str, str], log: str, out: Connection, address: str) -> None:
    """Become the command, with its environment, its output to a pipe and its standard error to a file.

    What it starts is forked by the server at this address as well: the standard library would start another one.
    """
    server = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address = address
    forkserver.ensure_running = server.ensure_running = lambda: None
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    os.dup2(out.fileno(), 1)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115 - the program's, to its end
    out.close()
    from spu_server.cli import app

    sys.argv = command
    app()
