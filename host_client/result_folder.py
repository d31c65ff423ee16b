"""The folder of a run's results: never those of another run, and its JSON says whether the run has finished."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from host_client import experiments, modules


class FolderInUse(Exception):
    """The folder for the results holds those of another run, or none that could go on."""

    remedy: ClassVar[str] = "name another folder with --out, or replace what is there with --overwrite"


class CheckpointUnusable(Exception):
    """A folder holds no checkpoint, or a damaged one, or one of a run with other options."""

    remedy: ClassVar[str] = "leave out the options that differ, or start anew with --overwrite"


CHECKPOINT: Final = "checkpoint.pt"
"""What an interrupted run goes on from."""


def checkpoint_in(folder: Path) -> Path:
    """Return the checkpoint of a run.

    Raises:
        CheckpointUnusable: when there is none.
        FolderInUse: when the run has finished.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        if read_status(folder / "run.json").get("status") == "finished":
            raise FolderInUse(f"the run in {folder} has finished; name another folder with --out for a new one")
        raise CheckpointUnusable(f"{path} does not exist, so no run can go on from it; start one without --resume")
    return path


def results_in(folder: Path) -> list[Path]:
    """Return the files in a folder that runs have left; a page or picture without data of a run is no result."""
    kinds = [
        ["run.json", "run.png", "steps.csv", "events.jsonl", "events-*.jsonl", CHECKPOINT],
        ["demo.json", "demo.png", "tngd.csv", "adam.csv"],
        *(
            [f"{name}.{end}" for end in ("json", "csv", "md", "png")] + [f"{name}-curves.csv"]
            for name in modules.names(experiments)
        ),
    ]
    found: set[Path] = set()
    for patterns in kinds:
        files = {path for pattern in patterns for path in (*folder.glob(pattern), *folder.glob(f"{pattern}.new"))}
        if any(path.suffix not in (".md", ".png") for path in files):
            found |= files
    return sorted(found)


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or that holds a run which is not to be overwritten; nothing is lost.

    Raises:
        FolderInUse: naming what it holds.
        OSError: when it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "run.json.new"
    probe.touch()
    probe.unlink()
    found = results_in(folder)
    if found and not overwrite:
        raise FolderInUse(
            f"{folder} holds a run already ({', '.join(path.name for path in found)}); name another folder with --out, "
            "or replace it with --overwrite"
        )


def clear(folder: Path) -> None:
    """Remove the results of an earlier run."""
    for path in results_in(folder):
        path.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file at once: there is either the old one or the new one, whatever happens meanwhile. Make its folder.

    Raises:
        OSError: when it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    os.replace(new, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, at once; its folder is made.

    Raises:
        OSError: when the file cannot be made.
    """
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_status(path: Path) -> dict[str, Any]:
    """Return the JSON of a run; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def new_results(folder: Path, name: str, **about: Any) -> Iterator[None]:
    """Clear a folder for a new run, whose ``NAME.json`` says from now on whether it is running, interrupted or failed.

    What is done within writes the file anew, with the status ``"finished"``, when it has finished.
    """
    clear(folder)
    path = folder / f"{name}.json"
    write_json(path, {"status": "running", **about})
    try:
        yield
    except BaseException as error:
        content = read_status(path)
        if content.get("status") == "running":
            interrupted = not isinstance(error, Exception)
            status = {"status": "interrupted"} if interrupted else {"status": "failed", "reason": str(error)}
            write_json(path, {**content, **status})
        raise


def interrupted_run(folder: Path) -> str:
    """Return what a folder holds of a run that was interrupted; empty where there is none."""
    found = results_in(folder) if folder.is_dir() else []
    if not any(read_status(path).get("status") == "interrupted" for path in found if path.suffix == ".json"):
        return ""
    return f"{folder} holds what there is of the run: {', '.join(path.name for path in found)}"
