"""An SPU daemon of one's own: a separate process that lives as long as a ``with`` block."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, ClassVar

READY_DEADLINE = 180.0
"""Seconds for the daemon to say that it serves; importing torch takes most of it on a cold machine."""

STOP_DEADLINE = 10.0
"""Seconds for it to end after SIGTERM; it promises 5."""


class DaemonFailed(Exception):
    """The daemon did not come up; the message holds the end of what it logged."""

    remedy: ClassVar[str] = (
        "read the end of the daemon's log in the message; `spu-server serve` in a terminal shows the same. If it has "
        "logged nothing, the machine is very busy: try again when it is less so"
    )


THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment of what computes."""


@contextmanager
def local_daemon(
    *,
    clock: str = "free",
    seed: int = 0,
    options: Sequence[str] = (),
    log: Path | None = None,
    threads: int | None = None,
) -> Iterator[str]:
    """Start ``spu-server serve`` with the emulator on a private Unix socket, give its address, and end it at the end.

    Args:
        clock: ``"free"`` or ``"stepped"``.
        seed: of the device's noise.
        options: further options of ``spu-server serve``.
        log: file for what the daemon logs; its folder is made. By default the log is dropped at the end.
        threads: that the emulator computes with; by default as many as there are processors.

    Raises:
        DaemonFailed: when it ends or stays silent instead of serving.
    """
    with tempfile.TemporaryDirectory(prefix="tngd-") as folder:
        address = f"unix:{folder}/spu.sock"
        log_path = log or Path(folder) / "daemon.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        command = [str(Path(sys.executable).with_name("spu-server")), "serve", "--listen", address]
        command += ["--driver", "emulator", "--clock", clock, "--seed", str(seed), *options]
        with log_path.open("wb") as stream:
            # A session of its own: Ctrl-C in the terminal reaches this process, which then ends the daemon in order.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=os.environ | ({} if threads is None else dict.fromkeys(THREADS, str(threads))),
                start_new_session=True,
            )
        try:
            if not _became_ready(process):
                code = process.poll()
                state = (
                    f"ended with exit code {code}" if code is not None else f"was not ready in {READY_DEADLINE:.0f} s"
                )
                tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-15:]) or "it has logged nothing"
                raise DaemonFailed(f"the daemon {state}: {' '.join(command)}\n{tail}")
            yield address
        finally:
            _stop(process)


def _became_ready(process: subprocess.Popen[str]) -> bool:
    """Return whether a line that starts with ``ready`` came in time; the pipe is drained for good, and never fills."""
    lines: queue.Queue[str | None] = queue.Queue()

    def drain(stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                lines.put(line)
        lines.put(None)

    assert process.stdout is not None
    threading.Thread(target=drain, args=(process.stdout,), name="daemon-stdout", daemon=True).start()
    deadline = time.monotonic() + READY_DEADLINE
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            return False
        if line is None:
            process.wait(timeout=STOP_DEADLINE)
            return False
        if line.startswith("ready"):
            return True
    return False


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=STOP_DEADLINE)
