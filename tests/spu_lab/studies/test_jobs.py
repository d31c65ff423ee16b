"""Jobs of an experiment: done side by side, kept when they are done, and nothing left running when they break off."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from spu_lab.studies.jobs import work_off
from tests.command_line import tngd, words


@dataclass(frozen=True)
class Square:
    """What a job comes to."""

    value: float
    process: int
    threads: int


def square(number: float) -> Square:
    """Return a square, or fail for a negative number."""
    if number < 0.0:
        raise ValueError(f"number is {number:g}; it must be at least 0")
    return Square(number * number, os.getpid(), torch.get_num_threads())


def quiet() -> Console:
    return Console(file=StringIO())


def test_jobs_run_in_other_processes_with_one_thread_each_and_come_in_the_order_asked_for(tmp_path: Path) -> None:
    jobs = {f"square of {number}": {"number": number} for number in (3.0, 1.0, math.inf, 2.0)}
    results = work_off(square, jobs, tmp_path, quiet(), kind=Square)
    assert [(name, result.value) for name, result in results.items()] == [
        (name, job["number"] ** 2) for name, job in jobs.items()
    ]
    assert {result.threads for result in results.values()} == {1}
    assert os.getpid() not in {result.process for result in results.values()}


def test_what_is_done_is_not_done_again_unless_it_is_another_job(tmp_path: Path) -> None:
    first = work_off(square, {"a": {"number": 2.0}, "b": {"number": math.inf}}, tmp_path, quiet(), kind=Square)
    path = next(path for path in (tmp_path / "runs").iterdir() if path.name.startswith("a-"))
    path.write_text(path.read_text().replace("4.0", "5.0"))  # seen, if it is read
    assert first["b"].value == math.inf
    again = work_off(square, {"a": {"number": 2.0}, "b": {"number": math.inf}}, tmp_path, quiet(), kind=Square)
    assert (again["a"].value, again["b"]) == (5.0, first["b"])
    other = work_off(square, {"a": {"number": 3.0}}, tmp_path, quiet(), kind=Square)
    assert other["a"].value == 9.0
    path.write_text(path.read_text()[:40])
    assert work_off(square, {"a": {"number": 3.0}}, tmp_path, quiet(), kind=Square)["a"].value == 9.0


def test_a_job_that_fails_leaves_what_is_done(tmp_path: Path) -> None:
    jobs = {"good": {"number": 1.0}, "bad": {"number": -1.0}}
    with pytest.raises(ValueError, match="number is -1; it must be at least 0"):
        work_off(square, jobs, tmp_path, quiet(), kind=Square, at_once=1)
    (kept,) = (tmp_path / "runs").iterdir()
    assert json.loads(kept.read_text())["arguments"] == {"number": 1.0}
    assert work_off(square, {"good": {"number": 1.0}}, tmp_path, quiet(), kind=Square)["good"].value == 1.0


def start_or_fail(place: str, first: bool) -> int:
    """Start a process, say which, and wait for it; or fail once another job has done so."""
    path = Path(place)
    if first:
        started = subprocess.Popen(["sleep", "600"], start_new_session=True)  # as daemons are started
        path.with_suffix(".new").write_text(str(started.pid))
        path.with_suffix(".new").rename(path)
        return started.wait()
    deadline = time.monotonic() + 60.0
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    raise ValueError("this job fails")


def test_a_job_that_fails_ends_the_others_with_all_that_they_have_started(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    jobs = {"starts a process": {"first": True}, "fails": {"first": False}}
    with pytest.raises(ValueError, match="this job fails"):
        work_off(partial(start_or_fail, str(place)), jobs, tmp_path, quiet(), kind=int, at_once=2)
    deadline = time.monotonic() + 20.0
    while psutil.pid_exists(pid := int(place.read_text())) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


WORDS = ["reproduce", "noise", "--quick", "--spu", "inproc:"]


def test_an_experiment_that_is_interrupted_leaves_no_process_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    kept, command = out / "runs", [Path(sys.executable).with_name("tngd"), *WORDS, "--out", out]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120.0
        while not any(kept.glob("*.json")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the run: " in errors
    assert "; go on with it with --resume" in errors
    assert "Traceback" not in errors
    _gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert json.loads((out / "noise.json").read_text())["status"] == "interrupted"
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.json")}

    again = tngd(*WORDS, "--out", str(out))
    assert again.exit_code == 1
    assert "go on with it with --resume" in words(again.stderr)
    other = tngd(*WORDS[:-2], "--out", str(out), "--resume")
    assert other.exit_code == 1
    assert "--spu is None; the run to go on with was started with inproc:, give the same" in words(other.stderr)
    resumed = tngd(*WORDS, "--out", str(out), "--resume")
    assert resumed.exit_code == 0, resumed.output
    done = json.loads((out / "noise.json").read_text())
    assert done["status"] == "finished"
    total = sum(len(arm["runs"]) for arm in done["arms"])
    assert f"{len(before) + 1} of {total} runs are done" in resumed.output
    assert f"\n{len(before)} of {total} runs are done" not in f"\n{resumed.output}"
    assert not kept.exists()
    finished = tngd(*WORDS, "--out", str(out), "--resume")
    assert finished.exit_code == 1
    assert "has finished" in words(finished.stderr)


def test_an_experiment_without_a_beginning_cannot_go_on(tmp_path: Path) -> None:
    done = tngd(*WORDS, "--out", str(tmp_path), "--resume")
    assert done.exit_code == 1
    assert "holds no run of noise that could go on" in words(done.stderr)
