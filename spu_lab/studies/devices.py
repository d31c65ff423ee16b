"""The device of a run, whichever way it is named: one of a user, one in this process, or one in a daemon of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from host_client.blocking import Spu, connect
from spu_lab.local_daemon import local_daemon
from spu_server.timing import PARTS


@contextmanager
def open_device(
    address: str | None,
    *,
    seed: int = 0,
    embedding: str | None = None,
    driver_option: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Spu]:
    """Give a device for as long as a ``with`` block lasts.

    Args:
        address: None starts a daemon with a stepped clock; ``"inproc:"`` puts such a device into this process; any
            other is that of a device as it is, which the further arguments do not change.
        seed: of the device's noise.
        embedding: as of `connect`.
        driver_option: settings of the driver by name.
        options: further options of ``spu-server serve`` by name: ``driver``, ``cells``.

    Raises:
        DaemonFailed, SpuError: when a daemon or device cannot be opened.
    """
    with ExitStack() as stack:
        if address is None:
            words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
            settings = {name.replace("__", "."): value for name, value in (driver_option or {}).items()}
            words += [word for name, value in settings.items() for word in ("--driver-option", f"{name}={value}")]
            daemon = local_daemon(clock="stepped", seed=seed, options=words)
            yield stack.enter_context(connect(stack.enter_context(daemon), embedding=embedding))
        elif address == "inproc:":
            device = {"clock": "stepped", "seed": seed, "driver_option": driver_option or {}, **options}
            yield stack.enter_context(connect(address, embedding=embedding, **device))
        else:
            yield stack.enter_context(connect(address, embedding=embedding))


def modelled_seconds(spu: Spu) -> float:
    """Return the modelled time of all that has been asked of a device, s."""
    report = spu.report()
    return sum(report[part] for part in PARTS)
