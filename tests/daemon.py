"""Daemons under test, in separate processes."""

from __future__ import annotations

import re
import resource
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.forked import Forked, command
from tests.pressure import Undisturbed

READY_SECONDS = 30.0
STOP_SECONDS = 5.0


class Daemon:
    """`spu-server serve` on a Unix socket; ready when made."""

    def __init__(self, socket: Path, *options: str) -> None:
        self.socket = socket
        self.address = f"unix:{socket}"
        self.log_path = socket.with_suffix(".log")
        self.process = self._start(["serve", "--listen", self.address, *options])
        self.ready = self._wait_ready()

    def _start(self, arguments: list[str]) -> Forked | subprocess.Popen[str]:
        return Forked(command, "spu_server.cli", *arguments, log=self.log_path)

    @property
    def addresses(self) -> list[str]:
        """Every address it listens on, as it printed them."""
        return self.ready.split()[1:]

    @property
    def log(self) -> str:
        """Its log so far."""
        return self.log_path.read_text()

    def driver_process(self) -> psutil.Process:
        """The process that runs the driver."""
        pid = re.findall(r'"driver_pid": (\d+)', self.log)[-1]
        return psutil.Process(int(pid))

    def processes(self) -> list[psutil.Process]:
        """The daemon and its driver."""
        return [psutil.Process(self.process.pid), self.driver_process()]

    @contextmanager
    def without_descriptors(self) -> Iterator[None]:
        """Let it open nothing more while this is entered; what it has open stays so."""
        soft, hard = resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (3, hard))
        try:
            yield
        finally:
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (soft, hard))

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM; exit code and undisturbed seconds until the end."""
        watch = Undisturbed()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60.0), watch.seconds

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it, and see that it ends well unless a test has killed it."""
        try:
            if self.process.poll() is None:
                code, seconds = self.stop()
                assert code == 0, f"exit code {code}\n{self.log}"
                assert seconds < STOP_SECONDS, f"took {seconds:.1f} s to stop\n{self.log}"
        finally:
            if self.process.poll() is None:
                self.kill()
            self._close_pipes()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _wait_ready(self) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            watch = Undisturbed()
            while not selector.select(1.0):
                if watch.seconds < READY_SECONDS:
                    continue
                self.kill()
                self._close_pipes()
                raise AssertionError(f"not ready after {READY_SECONDS} s\n{self.log}")
        line = self.process.stdout.readline().strip()
        if not line.startswith("ready"):
            self.process.wait(timeout=60.0)
            self._close_pipes()
            raise AssertionError(f"printed {line!r}, exit code {self.process.returncode}\n{self.log}")
        return line


class InstalledDaemon(Daemon):
    """The installed command, whose driver's process and the interpreter's helpers are its children."""

    def _start(self, arguments: list[str]) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("spu-server")), *arguments]
        with self.log_path.open("w") as log:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)

    def children(self) -> list[psutil.Process]:
        """Every process that has come from it."""
        return psutil.Process(self.process.pid).children(recursive=True)
