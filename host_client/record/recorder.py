"""Writing the record of a run while it happens."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, get_args

from host_client.record.events import Event

FILE: Final = "events.jsonl"
"""The record's name in the folder of a run."""

VERSION: Final = 4
"""Of the format. A new kind of event or a new field does not change it; a new meaning of an old one does."""

KINDS: Final[dict[str, type[Event]]] = {kind.__name__: kind for kind in get_args(Event)}
"""Every kind of event by the name it has in the file."""

_FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in KINDS.values()}


class RunRecord:
    """Writes events to ``events.jsonl``: JSON, one a line, each in the file before `record` returns.

    What a killed process leaves can be read up to its last event. The first line is the header: the format's version,
    ``wall_clock_at_zero`` (the Unix time, in seconds, at which ``time.monotonic()`` was 0) and whatever else is given.
    An event takes some 6 µs; `record` may be called from any thread. What happens after `close` is no part of the
    record: it is counted, since links and sessions may end later than the record.

    Args:
        folder: of the run; made if need be. A record that lies there is replaced.
        header: what a reader should know: settings, device, versions, machine.

    Attributes:
        path: of the file.
        late: events that came after `close`.

    Raises:
        OSError: when the file cannot be made.
    """

    def __init__(self, folder: Path, **header: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self.late = 0
        self._lock = threading.Lock()
        self._file = self.path.open("w", encoding="utf-8", buffering=1)
        started = {"format": VERSION, "wall_clock_at_zero": time.time() - time.monotonic()}
        self._file.write(json.dumps(started | header, ensure_ascii=False) + "\n")

    def record(self, event: Event) -> None:
        """Append an event.

        Raises:
            OSError: when the disk is full.
        """
        kind = type(event)
        content = {"event": kind.__name__} | {name: getattr(event, name) for name in _FIELDS[kind]}
        line = json.dumps(content, ensure_ascii=False) + "\n"
        with self._lock:
            if self._file.closed:
                self.late += 1
            else:
                self._file.write(line)

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        """The record itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
