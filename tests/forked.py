"""Programs in separate processes, without the seconds that it takes to import torch."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

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
    """A program, forked from a process that has imported everything and used nothing.

    To be used as a `subprocess.Popen` with pipes for standard input and output. What it starts by the standard
    library's fork server, such as a daemon's driver, is a fork of the same process.

    Args:
        run: called in the process, `command` or `script`.
        arguments: for it.
        log: file for its standard error; None for that of this process.
    """

    def __init__(self, run: Callable[..., None], *arguments: Any, log: Path | None = None) -> None:
        (reading, its_out), (its_in, writing) = context.Pipe(duplex=False), context.Pipe(duplex=False)
        forkserver.ensure_running()
        address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]  # noqa: SLF001
        self._process = context.Process(
            target=_run, args=(dict(os.environ), its_in, its_out, log, address, run, arguments)
        )
        self._process.start()
        self.stdout = open(os.dup(reading.fileno()))  # noqa: SIM115 - for the caller to close
        self.stdin = open(os.dup(writing.fileno()), "w")  # noqa: SIM115
        for connection in (reading, its_out, its_in, writing):
            connection.close()

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
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the pipes and wait for its end."""
        self.stdin.close()
        self.stdout.close()
        self.wait()


def command(module: str, *arguments: str) -> None:
    """Run the command line ``app`` of a module."""
    sys.argv = [module, *arguments]
    importlib.import_module(module).app()


def script(code: str, *arguments: str) -> None:
    """Run a program as ``python -c`` would."""
    sys.argv = ["-c", *arguments]
    exec(compile(code, "program", "exec"), {"__name__": "__main__"})


def _run(
    environment: dict[str, str],
    its_in: Connection,
    its_out: Connection,
    log: Path | None,
    address: str,
    run: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """Become the program, with its environment and its standard files.

    What it starts is forked by the server at this address as well: the standard library would start another one.
    """
    server = forkserver._forkserver  # type: ignore[attr-defined]  # noqa: SLF001
    server._forkserver_address = address  # noqa: SLF001
    forkserver.ensure_running = server.ensure_running = lambda: None
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    os.dup2(its_in.fileno(), 0)
    os.dup2(its_out.fileno(), 1)
    if log is not None:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 2)
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - the program's, to its end
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    its_in.close()
    its_out.close()
    run(*arguments)
