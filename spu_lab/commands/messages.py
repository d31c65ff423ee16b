"""Messages for people when a command cannot go on."""

from __future__ import annotations

import re
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape

errors = Console(stderr=True)

BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
"""Of pydantic's bounds, in words."""


@contextmanager
def one_clear_message(options: Mapping[str, str], out: Path | None = None) -> Iterator[None]:
    """Show an error as one message in the words of the command line, exit code 1; a warning as a note, once.

    Every error class that a person can do something about has a `remedy`, and the others are faults of this program:
    their traceback goes to a file. Ctrl-C ends with exit code 130 and SIGTERM with 143, after what is open has been
    closed.

    Args:
        options: names of the command's parameters, and how they are typed.
        out: where the results were to be.
    """
    signals: list[int] = []

    def stop(number: int, frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _warnings_as_notes(options):
            yield
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - each becomes a message
        # An interrupt in the middle of an import may come out as another error.
        if signals or isinstance(error, KeyboardInterrupt):
            number = signals[0] if signals else signal.SIGINT
            print_interrupted(number, _left_in(out))
            raise typer.Exit(128 + number) from None
        print_error(*explain(error, options, out))
        raise typer.Exit(1) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def explain(error: Exception, options: Mapping[str, str], out: Path | None = None) -> tuple[str, str]:
    """Return a name and a message for an error."""
    name = type(error).__name__
    if hasattr(error, "remedy"):
        return name, as_typed(f"{error}\n{next_step(error)}".strip(), options)
    if isinstance(error, ModuleNotFoundError):
        return (
            "error",
            f"the package {error.name!r} is not installed; install it, or all with tngd-spu[test]",
        )
    if isinstance(error, MemoryError):
        return "error", as_typed("this machine's memory does not suffice; lower batch_size", options)
    if isinstance(error, OSError):
        place = error.filename or (f"results in {out}" if out is not None else "a file")
        return "error", f"{place}: {error.strerror or error}"
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        # A default that depends on a setting which is wrong is no problem of its own.
        problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        return "error", as_typed("\n".join(map(_problem, problems)), options)
    if isinstance(error, ValueError) and re.match(r"Invalid \w+: ", str(error)):
        return "error", as_typed(str(error), options)
    with tempfile.NamedTemporaryFile("w", prefix="tngd-", suffix=".log", delete=False, encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return "unexpected error", f"{name}; this is a fault of tngd. Please report it with its traceback, {file.name}"


def _problem(problem: Mapping[str, Any]) -> str:
    """Return one problem of a pydantic error as a sentence that begins with the name of the field."""
    context = problem.get("ctx", {})
    field = ".".join(str(part) for part in problem["loc"])
    bounds = [f"{BOUNDS[name]} {bound:g}" for name, bound in context.items() if name in BOUNDS]
    if bounds:
        return f"{field} is {problem['input']:g}; it must be {' and '.join(bounds)}"
    if problem["type"] == "finite_number":
        return f"{field} is {problem['input']}; it must be finite"
    said = str(context.get("error", problem["msg"]))  # without pydantic's "Value error, "
    return f"{field}: {said}" if field else said


def as_typed(text: str, options: Mapping[str, str]) -> str:
    """Return a message with options in the place of the names that they have in Python."""
    for name, option in options.items():
        text = re.sub(rf"\bInvalid {name}: (.*?);", rf"{option} is \1;", text)
        text = re.sub(rf'(?<![\w-]){name}=(["\']?)([\w.-]+)\1', rf"{option} \2", text)
        only_a_name = "_" in name or name == "lr"
        places = r"(?<![\w-])" if only_a_name else r"(?:(?<=lower )|(?<=raise )|^)"
        text = re.sub(rf"{places}{name}\b(?!-)" + ("" if only_a_name else r"(?!:)"), option, text, flags=re.MULTILINE)
    return text


@contextmanager
def _warnings_as_notes(options: Mapping[str, str]) -> Iterator[None]:
    shown: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = as_typed(str(message), options)
        if text not in shown:
            shown.add(text)
            note(text)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _left_in(out: Path | None) -> str:
    """Return what the folder of an interrupted run holds, if one says that it has been interrupted."""
    from spu_lab.result_folder import interrupted_run

    return "" if out is None else interrupted_run(out)


def note(message: str) -> None:
    """Print what is worth knowing but no error, to standard error."""
    errors.print(f"[yellow]note[/yellow]: {escape(message)}", highlight=False, soft_wrap=True)


def print_error(name: str, message: str) -> None:
    """Print a message to standard error, its name in red."""
    errors.print(f"[red]{escape(name)}[/red]: {escape(message)}", highlight=False, soft_wrap=True)


def print_interrupted(number: int, more: str) -> None:
    """Print that a signal has ended the command, and what a person should know then."""
    by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    print_error("interrupted", f"by {by}; {more}" if more else f"by {by}")


def next_step(error: Exception) -> str:
    """Return what to do about an error of the device, where its own message does not say it."""
    from spu_link import errors as known

    match error:
        case known.DeviceBusy():
            return f"The device is free in {error.retry_after:.0f} s if its holder does not renew; try again then."
        case known.DeviceFault():
            return "The driver failed; the daemon's log says why. Restart `spu-server serve`."
        case known.CapacityExceeded():
            return "Use a smaller --batch-size, another --embedding, or a daemon with larger --cells or --max-bytes."
        case known.DeviceHalted() | known.SessionExpired() | known.StaleSession() | known.DeadlineExceeded():
            return "Run the same command again; a new session starts afresh."
        case _:
            return ""
