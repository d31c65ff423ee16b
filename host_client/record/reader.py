"""Reading the record of a run, also one that is still growing or that ended by a kill."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from host_client.record.events import Event
from host_client.record.recorder import FILE, KINDS, VERSION

E = TypeVar("E")

_ADAPTERS: dict[type[Event], TypeAdapter[Event]] = {kind: TypeAdapter(kind) for kind in KINDS.values()}

OUTCOME_BEFORE_4, TIME_BEFORE_4 = "took hold", "took_hold"
"""Format 3 differs from 4 in the name of this outcome of an upload, and in that of its device time."""


class UnreadableRecord(Exception):
    """There is no record of a run, or it is not one."""

    remedy: ClassVar[str] = "name the folder of a run of `tngd train`; record the run again if its file is damaged"


@dataclass(frozen=True)
class Record:
    """The record of a run.

    Attributes:
        header: of the file.
        events: in the order in which they were recorded, which is that of their ends.
        notes: what a reader should know about the file: a torn last line, kinds of events that were skipped.
    """

    header: dict[str, Any]
    events: tuple[Event, ...]
    notes: tuple[str, ...] = ()

    def of(self, kind: type[E]) -> Iterator[E]:
        """The events of one kind."""
        return (event for event in self.events if isinstance(event, kind))


def load(folder: Path) -> Record:
    """Read a record.

    Kinds of events that this version does not know are skipped and counted in the notes. A last line that was torn
    when its process was killed is skipped with a note. Records of format 3 are read as well.

    Args:
        folder: of the run, or the file itself.

    Raises:
        UnreadableRecord: when there is no record, or a line of it is not what it must be.
    """
    path = folder / FILE if folder.is_dir() else folder
    if not path.is_file():
        raise UnreadableRecord(f"{path} does not exist; `tngd train … --out {folder}` leaves one")
    header, events, notes = {}, [], []
    skipped: Counter[str] = Counter()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                notes.append(
                    f"line {number}, the last, is torn and was skipped: the process was killed, or still writes"
                )
                break
            content = _content(path, number, line)
            if number == 1:
                header = _checked_header(path, content)
                continue
            name = content.pop("event", None)
            if not isinstance(name, str):
                raise UnreadableRecord(f"{path}, line {number}: event is {name!r}; it must be the name of a kind")
            kind = KINDS.get(name)
            if kind is None:
                skipped[name] += 1
            else:
                events.append(_event(path, number, kind, _in_this_format(content)))
    if not header:
        raise UnreadableRecord(f"{path} has no header; its process ended before it had written one")
    notes += [f"{count} events of an unknown kind {name!r} were skipped" for name, count in skipped.items()]
    return Record(header, tuple(events), tuple(notes))


def _content(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UnreadableRecord(f"{path}, line {number}, is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UnreadableRecord(f"{path}, line {number}, is {line.strip()[:40]!r}; it must be an object")
    return content


def _checked_header(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    version = content.get("format")
    if not isinstance(version, int):
        raise UnreadableRecord(f"{path} does not begin with a header; it is not the record of a run")
    if version not in (VERSION - 1, VERSION):
        raise UnreadableRecord(
            f"{path} has format {version}, and this version of tngd reads {VERSION - 1} and {VERSION}; "
            f"{'update it' if version > VERSION else 'record the run anew'}"
        )
    return content


def _in_this_format(content: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an event of format 3 or 4 as format 4 names them."""
    if TIME_BEFORE_4 in content:
        content["took_effect"] = content.pop(TIME_BEFORE_4)
    if content.get("outcome") == OUTCOME_BEFORE_4:
        content["outcome"] = "took effect"
    return content


def _event(path: Path, number: int, kind: type[Event], content: dict[str, Any]) -> Event:
    """Return an event from its fields; those that this version does not know are left out."""
    try:
        return _ADAPTERS[kind].validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise UnreadableRecord(f"{path}, line {number}: {kind.__name__} lacks {field}") from None
        raise UnreadableRecord(f"{path}, line {number}: {field} of {kind.__name__}: {first['msg'].lower()}") from None
