"""Fair timing: what is compared takes turns, so that it sees the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def medians(subjects: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 3) -> dict[str, float]:
    """Median wall time of each subject, in seconds, over rounds in which every subject runs once.

    Args:
        subjects: what to run, by name.
        rounds: how often.
        warmup: rounds before, not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(warmup + rounds):
        for name, subject in subjects.items():
            begin = time.perf_counter()
            subject()
            seconds = time.perf_counter() - begin
            if number >= warmup:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}
