"""What a person reads when a command cannot go on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

errors = Console(stderr=True)


@contextmanager
def one_clear_message(out: Path | None = None) -> Iterator[None]:
    """Show what a person can act on as one message, exit code 1. The rest are bugs and shown whole.

    Ctrl-C ends with exit code 130 and SIGTERM with 143, both after closing sessions and ending a daemon of one's own.
    """
    from pydantic import ValidationError

    from host_client.curvature.errors import CurvatureTooLarge
    from host_client.experiments.study import DeviceNotTaken
    from host_client.local_daemon import DaemonFailed
    from host_client.modules import UnknownName
    from host_client.optimizers.solvers.checks import TooManyParameters
    from host_client.optimizers.solvers.kronecker_factors import LibraryMissing
    from host_client.performance.page import NoResults
    from host_client.record import UnreadableRecord
    from host_client.tasks.mnist import DataUnavailable
    from host_client.timeline.window import NoSuchWindow
    from spu_link.errors import LogUnusable, SpuError

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    except ValidationError as error:
        for problem in error.errors():
            said = str(problem.get("ctx", {}).get("error", problem["msg"]))  # without pydantic's "Value error, "
            tell(".".join(str(part) for part in problem["loc"]) or "settings", said)
    except SpuError as error:
        tell(type(error).__name__, f"{error}\n{next_step(error)}".strip())
    except (
        CurvatureTooLarge,
        DaemonFailed,
        DataUnavailable,
        DeviceNotTaken,
        FloatingPointError,
        LibraryMissing,
        LogUnusable,
        NoResults,
        NoSuchWindow,
        OSError,
        TooManyParameters,
        UnknownName,
        UnreadableRecord,
    ) as error:
        nameless = isinstance(error, OSError) and error.filename is None and out is not None
        tell(type(error).__name__, f"{error}; the results were to be in {out}" if nameless else str(error))
    except KeyboardInterrupt:
        kept = f"; the iterations so far are in {out}" if out is not None else ""
        tell("interrupted", f"by Ctrl-C{kept}")
        raise typer.Exit(130) from None
    else:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
    raise typer.Exit(1)


def note(message: str) -> None:
    """Print what is worth knowing but no error, to standard error."""
    errors.print(f"[yellow]note[/yellow]: {escape(message)}", highlight=False, soft_wrap=True)


def tell(name: str, message: str) -> None:
    """Print a message to standard error, its name in red."""
    errors.print(f"[red]{escape(name)}[/red]: {escape(message)}", highlight=False, soft_wrap=True)


def next_step(error: Exception) -> str:
    """What to do about an error of the device, where its own message does not say it."""
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
