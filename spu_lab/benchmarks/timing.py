"""Fair timing: what is compared takes turns, so that it sees the same machine, each in a separate process."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from statistics import median
from typing import ParamSpec, TypeAlias, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Subjects: TypeAlias = Mapping[str, Callable[[], object]]
"""The functions to time, by name."""

TURN_SECONDS = 300.0
"""Timeout of one turn of a side."""

log = logging.getLogger(__name__)
"""Log of a benchmark's progress; `tngd bench` shows it."""


def turn(subjects: Subjects, *, repeats: int, warmup: int = 2) -> dict[str, list[float]]:
    """Wall times of each subject, in seconds, run several times in a row as it would be in a training loop.

    Args:
        subjects: what to time.
        repeats: timed runs of each.
        warmup: runs before them, not timed, in which it finds its own data in the processor's caches again.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for name, subject in subjects.items():
        for number in range(warmup + repeats):
            begin = time.perf_counter()
            subject()
            if number >= warmup:
                times[name].append(time.perf_counter() - begin)
    return times


def medians(
    sides: Mapping[str, Callable[[], Subjects]], *, rounds: int, repeats: int = 8, warmup: int = 2
) -> dict[str, float]:
    """Median wall times, in seconds, by ``side_subject``, over rounds in which every side has its turn.

    Each side runs in a separate process: threads that one leaves behind would slow the other down.

    Args:
        sides: by name, what makes a side's subjects; called in the side's process, so it must be a module's function.
        rounds: how often each side has its turn.
        repeats: timed runs of each subject a turn.
        warmup: runs of each subject before them.
    """
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        pools = {name: stack.enter_context(_worker(partial(_set_up, make))) for name, make in sides.items()}
        for number in range(1, rounds + 1):
            for side, pool in pools.items():
                log.info("round %d of %d: %s", number, rounds, side)
                for name, values in pool.submit(_call, partial(_turn, repeats, warmup)).result(TURN_SECONDS).items():
                    times.setdefault(f"{side}_{name}", []).extend(values)
    return {name: median(values) for name, values in times.items()}


def alone(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a fresh process that ends with it, so that its memory can be measured; return its result."""
    with _worker() as pool:
        return pool.submit(_call, partial(function, *args, **kwargs)).result(TURN_SECONDS)


_subjects: Subjects = {}


@contextmanager
def _worker(set_up: Callable[[], None] | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of one process, which ends with the block, whatever it is doing then, and with this process.

    A benchmark that is stopped must not leave work behind that slows the next one down.
    """
    lifeline, worker_end = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(worker_end, set_up))
    try:
        yield pool
    finally:
        lifeline.close()
        pool.shutdown()
        worker_end.close()


def _begin(lifeline: Connection, set_up: Callable[[], None] | None) -> None:
    def end_with_lifeline() -> None:
        lifeline.poll(None)  # nothing is ever sent: it becomes readable when the other end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    threading.Thread(target=end_with_lifeline, name="lifeline", daemon=True).start()
    if set_up is not None:
        set_up()


def _call(function: Callable[[], T]) -> T:
    try:
        return function()
    except SystemExit:  # daemons and sessions are closed by now; the pool would wait for more work
        os._exit(143)


def _set_up(make: Callable[[], Subjects]) -> None:
    global _subjects
    _subjects = make()


def _turn(repeats: int, warmup: int) -> dict[str, list[float]]:
    return turn(_subjects, repeats=repeats, warmup=warmup)
