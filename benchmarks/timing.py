"""Fair timing: what is compared takes turns, so that it sees the same machine, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import TypeAlias

Subjects: TypeAlias = Mapping[str, Callable[[], object]]
"""What to time, by name."""

TURN_SECONDS = 300.0
"""Longest that one turn of a side may take."""


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


def medians(sides: Mapping[str, Callable[[], Subjects]], *, rounds: int, repeats: int = 8) -> dict[str, float]:
    """Median wall times, in seconds, by ``side_subject``, over rounds in which every side has its turn.

    Each side runs in a process of its own: threads that one leaves behind would slow the other down.

    Args:
        sides: by name, what makes a side's subjects; called in the side's process, so it must be a module's function.
        rounds: how often each side has its turn.
        repeats: timed runs of each subject a turn.
    """
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        pools = {name: stack.enter_context(_pool(make)) for name, make in sides.items()}
        for _ in range(rounds):
            for side, pool in pools.items():
                for name, values in pool.submit(_turn, repeats).result(TURN_SECONDS).items():
                    times.setdefault(f"{side}_{name}", []).extend(values)
    return {name: median(values) for name, values in times.items()}


_subjects: Subjects = {}


def _pool(make: Callable[[], Subjects]) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=partial(_set_up, make))


def _set_up(make: Callable[[], Subjects]) -> None:
    global _subjects
    _subjects = make()


def _turn(repeats: int) -> dict[str, list[float]]:
    return turn(_subjects, repeats=repeats)
