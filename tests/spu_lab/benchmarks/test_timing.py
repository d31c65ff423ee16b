"""A side of a benchmark lives in a separate process, and no longer than whoever asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from spu_lab.benchmarks import timing

SCRIPT = """
import os, pathlib, sys, time
from spu_lab.benchmarks import timing

def say_and_sleep(path):
    pathlib.Path(path + ".part").write_text(str(os.getpid()))
    pathlib.Path(path + ".part").rename(path)
    time.sleep(60.0)

if __name__ == "__main__":
    timing.alone(say_and_sleep, sys.argv[1])
"""


def test_a_function_runs_in_another_process_and_its_result_comes_back() -> None:
    assert timing.alone(os.getpid) != os.getpid()


def test_a_function_that_fails_says_so_here() -> None:
    with pytest.raises(ZeroDivisionError):
        timing.alone(divmod, 1, 0)


def test_a_function_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TURN_SECONDS", 1.5)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        timing.alone(time.sleep, 60.0)
    assert time.monotonic() - began < 30.0
    assert not [
        child for child in psutil.Process().children(recursive=True) if "multiprocessing.spawn" in child.cmdline()
    ]


def test_what_it_was_doing_ends_when_the_benchmark_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(SCRIPT)
    said = tmp_path / "pid"
    with subprocess.Popen([sys.executable, str(script), str(said)]) as benchmark:
        worker = psutil.Process(_wait_for_number(said))
        benchmark.send_signal(signal.SIGKILL)
    worker.wait(timeout=30.0)


def _wait_for_number(path: Path) -> int:
    deadline = time.monotonic() + 60.0
    while not path.exists():
        assert time.monotonic() < deadline, f"nothing was written to {path}"
        time.sleep(0.02)
    return int(path.read_text())
