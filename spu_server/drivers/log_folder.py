"""The folder of a device's event log; imports nothing large, so that a wrong name is refused at once."""

from __future__ import annotations

from pathlib import Path

from spu_link.errors import LogUnusable

HEADER = "log.json"
"""Name of the file that every log has."""


def only_log(path: Path) -> Path:
    """Return the folder of a log, from it or from one that holds it alone.

    Raises:
        LogUnusable: when there is none, or more than one.
    """
    if (path / HEADER).is_file():
        return path
    logs = sorted(header.parent for header in path.glob(f"*/{HEADER}")) if path.is_dir() else []
    if len(logs) == 1:
        return logs[0]
    names = f"several logs, name one of them: {', '.join(log.name for log in logs)}" if logs else f"no {HEADER}"
    raise LogUnusable(f"{path} has {names}")
