"""Ending a run between two iterations when a signal asks for it."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class Stop:
    """Note the first SIGINT or SIGTERM; the second acts as it would without this.

    Attributes:
        number: of the first signal; None before it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            return
        before = self._before[number]
        if callable(before):
            before(number, frame)
        else:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        """Begin to note signals."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let signals act again."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
