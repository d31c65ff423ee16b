"""Jobs: the independent runs of an experiment, in processes side by side, each kept on disk once it is done."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from loky import cpu_count, get_reusable_executor
from pydantic import ConfigDict, TypeAdapter, ValidationError
from rich.console import Console

from spu_lab.local_daemon import THREADS
from spu_lab.result_folder import kept_in, read_json, write_json
from spu_lab.training.follow import progress

R = TypeVar("R")

NUMBERS: Final = ConfigDict(ser_json_inf_nan="constants")
"""Results may hold numbers that are not finite."""

IDLE_SECONDS: Final = 20
"""Seconds after which processes without a job end."""


def work_off(
    work: Callable[..., R],
    jobs: Mapping[str, Mapping[str, Any]],
    out: Path,
    console: Console,
    *,
    kind: Any,
    at_once: int | None = None,
) -> dict[str, R]:
    """Run the jobs that have not been done, several at a time, and return all results.

    Each result is written when its job is done. An experiment that was interrupted and is resumed in the same folder
    uses it, unless the arguments have changed.

    Args:
        work: called with the arguments of a job, in a process with one thread.
        jobs: arguments by the name of the job; JSON can hold them.
        out: the experiment's folder for results.
        console: where progress is shown, and a line for each job that is done.
        kind: type of the results: a dataclass, or what else pydantic writes as JSON.
        at_once: jobs at a time; by default as many as there are processors.

    Returns:
        Results by name, in the order of `jobs`.

    Raises:
        Exception: that of a job that fails; the others are ended, and what is done stays.
        OSError: when a result cannot be written.
    """
    adapter: TypeAdapter[list[R]] = TypeAdapter(list[kind], config=NUMBERS)
    arguments = {name: json.loads(TypeAdapter(Any).dump_json(job)) for name, job in jobs.items()}
    files = {name: kept_in(out) / f"{_file_name(name)}.json" for name in jobs}
    done = {name: kept for name in jobs if (kept := _read(files[name], arguments[name], adapter))}
    results = {name: kept[0] for name, kept in done.items()}
    with progress(console) as bar, _processes(at_once or cpu_count()) as pool:
        line = bar.add_task("runs", total=len(jobs), completed=len(done), status="")
        futures: dict[Future[R], str] = {pool.submit(work, **jobs[name]): name for name in jobs if name not in done}
        for future in _as_completed(futures):
            name = futures[future]
            results[name] = future.result()
            (result,) = adapter.dump_python([results[name]], mode="json")
            write_json(files[name], {"arguments": arguments[name], "result": result})
            bar.update(line, advance=1, status=name)
            console.print(f"{len(results)} of {len(jobs)} runs are done: {name}", highlight=False, soft_wrap=True)
    return {name: results[name] for name in jobs}


def _as_completed(futures: Iterable[Future[R]]) -> Iterator[Future[R]]:
    """Give futures as they are done; of several at a time those that failed last, so that no result is lost."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from sorted(done, key=lambda future: future.exception() is not None)


def _file_name(name: str) -> str:
    """Return a name for a file that differs for different names, and that every file system takes."""
    plain = re.sub(r"[^\w.=-]+", "-", name, flags=re.ASCII)[:80]
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _read(path: Path, arguments: Any, adapter: TypeAdapter[list[R]]) -> list[R]:
    """Return the result of a job that was done with these arguments, if there is one."""
    content = read_json(path)
    if content.get("arguments") != arguments:
        return []
    try:
        return adapter.validate_python([content["result"]])
    except (KeyError, ValidationError):
        return []


@contextmanager
def _processes(number: int) -> Iterator[Executor]:
    """Give processes, which stay for a while; after an error or Ctrl-C they and what they have started are ended."""
    options = {"initializer": _leave_interrupts, "env": dict.fromkeys(THREADS, "1")}
    pool = get_reusable_executor(max_workers=number, timeout=IDLE_SECONDS, **options)
    try:
        with warnings.catch_warnings():
            # A process whose memory has grown is replaced between two jobs, as it should be.
            warnings.filterwarnings("ignore", message="A worker was restarted", category=UserWarning)
            yield pool
    except BaseException:
        pool.shutdown(wait=True, kill_workers=True)
        raise


def _leave_interrupts() -> None:
    """Leave Ctrl-C to the process that the user has started, which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
