"""The folder of a run's results: never those of another run, and its JSON says whether the run has finished."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from spu_lab import catalogue


class FolderInUse(Exception):
    """The folder for the results holds those of another run, or none that could go on."""

    remedy: ClassVar[str] = "name another folder with --out, or replace what is there with --overwrite"


class CheckpointUnusable(Exception):
    """A folder holds no checkpoint, or a damaged one, or one of a run with other options."""

    remedy: ClassVar[str] = "leave out the options that differ, or start anew with --overwrite"


CHECKPOINT: Final = "checkpoint.pt"
"""File from which an interrupted run goes on."""


def kept_in(folder: Path) -> Path:
    """Return the folder of what an experiment has done so far, from which it goes on."""
    return folder / "runs"


def checkpoint_in(folder: Path) -> Path:
    """Return the checkpoint of a run.

    Raises:
        CheckpointUnusable: when there is none.
        FolderInUse: when the run has finished.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        if read_json(folder / "run.json").get("status") == "finished":
            raise FolderInUse(f"the run in {folder} has finished; name another folder with --out for a new one")
        raise CheckpointUnusable(f"{path} does not exist, so no run can go on from it; start one without --resume")
    return path


def results_in(folder: Path) -> list[Path]:
    """Return the files of the runs in a folder: those named after a JSON file that has the status of a run."""
    names = ("run", "demo", *catalogue.names("spu_lab.experiments"))
    runs = [name for name in names if "status" in read_json(folder / f"{name}.json")]
    return sorted(path for name in runs for path in _files_of(folder, name))


def _files_of(folder: Path, name: str) -> list[Path]:
    """Return the files in a folder that have the names of those of a run, whoever made them."""
    patterns = {
        "run": ["run.json", "run.png", "steps.csv", "events.jsonl", "events-*.jsonl", CHECKPOINT],
        "demo": ["demo.json", "demo.png", "equation.csv", "mnist.csv"],
    }.get(
        name,
        [f"{name}.{ending}" for ending in ("json", "csv", "md", "png", "cir")] + [f"{name}-curves.csv", "runs/*.json"],
    )
    return [path for pattern in patterns for path in (*folder.glob(pattern), *folder.glob(f"{pattern}.new"))]


def check_free(folder: Path, name: str, *, overwrite: bool) -> None:
    """Refuse a folder for the files of a run if it cannot be written, or something would be lost there; make it.

    Args:
        folder: for the results.
        name: of the files: ``"run"``, ``"demo"`` or an experiment.
        overwrite: whether runs that are there may be removed.

    Raises:
        FolderInUse: naming the files that are there, of a run or of other origin.
        OSError: when the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    results = results_in(folder)
    others = [path.name for path in _files_of(folder, name) if path not in results and path.suffix != ".new"]
    if others:
        raise FolderInUse(
            f"{folder} holds files with the names of results that are of no run ({', '.join(sorted(others))}); move "
            "them, or name another folder with --out"
        )
    if results and not overwrite:
        resume = "go on with it with --resume, " if _can_go_on(folder, results) else ""
        raise FolderInUse(
            f"{folder} holds a run already ({', '.join(_names(folder, results))}); {resume}name another folder "
            "with --out, or replace it with --overwrite"
        )


def _can_go_on(folder: Path, results: Sequence[Path]) -> bool:
    return folder / CHECKPOINT in results or any(path.parent == kept_in(folder) for path in results)


def check_resumable(folder: Path, name: str, options: Mapping[str, Any]) -> None:
    """Refuse to go on with an experiment in a folder that holds none that was broken off, or one with other options.

    Raises:
        CheckpointUnusable: when there is none of this name, or an option differs.
        FolderInUse: when it has finished.
    """
    begun = read_json(folder / f"{name}.json")
    status = begun.get("status")
    if status is None:
        raise CheckpointUnusable(f"{folder} holds no run of {name} that could go on; start one without --resume")
    if status == "finished":
        raise FolderInUse(f"the run in {folder} has finished; name another folder with --out for a new one")
    for option, value in begun.get("options", {}).items():
        if options[option] != value:
            raise CheckpointUnusable(
                f"Invalid {option}: {options[option]}; the run to go on with was started with {value}, give the same"
            )


def clear(folder: Path) -> None:
    """Remove the results of earlier runs; the JSON files that say so last, without which the others are of no run."""
    for path in sorted(results_in(folder), key=lambda path: path.parent == folder and path.suffix == ".json"):
        path.unlink()
    forget_kept(folder)


def forget_kept(folder: Path) -> None:
    """Remove what was kept for an experiment to go on."""
    kept = kept_in(folder)
    for path in kept.glob("*.json"):
        path.unlink()
    if kept.is_dir() and not any(kept.iterdir()):
        kept.rmdir()


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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def new_results(
    folder: Path, name: str, *, resume: bool = False, options: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Clear a folder for a new run, whose ``NAME.json`` says from now on whether it is running, interrupted or failed.

    What is done within writes the file anew, with the status ``"finished"``, when it has finished; what was kept for an
    experiment to go on is removed then. With `resume` nothing is cleared.
    """
    if not resume:
        clear(folder)
    path = folder / f"{name}.json"
    write_json(path, {"status": "running"} | ({"options": dict(options)} if options is not None else {}))
    try:
        yield
    except BaseException as error:
        content = read_json(path)
        if content.get("status") == "running":
            interrupted = not isinstance(error, Exception)
            status = {"status": "interrupted"} if interrupted else {"status": "failed", "reason": str(error)}
            write_json(path, {**content, **status})
        raise
    forget_kept(folder)


def interrupted_run(folder: Path) -> str:
    """Return what a folder holds of a run that was interrupted; empty where there is none."""
    results = results_in(folder) if folder.is_dir() else []
    if not any(read_json(path).get("status") == "interrupted" for path in results if path.suffix == ".json"):
        return ""
    resume = "; go on with it with --resume" if any(path.parent == kept_in(folder) for path in results) else ""
    return f"{folder} holds what there is of the run: {', '.join(_names(folder, results))}{resume}"


def _names(folder: Path, results: Sequence[Path]) -> list[str]:
    """Return the names of files, those in a folder of their own as one."""
    return list(dict.fromkeys(path.name if path.parent == folder else f"{path.parent.name}/" for path in results))
