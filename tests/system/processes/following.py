"""The calls of this project's functions while a step is taken, in every process that has a part in it."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

from host_client import TNGD, Rows, connect
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.emulator import Emulator
from tests.daemon import Daemon
from tests.forked import Forked, command
from tests.plugins.install import distribution

LAYERS = (
    "host_client.optimizers",
    "host_client.blocking",
    "host_client.loop",
    "host_client.aio",
    "host_client.links",
    "spu_server",
    "spu_link",
)
"""From above; packages that all of them use are no layer."""

GENERAL = ("host_client.frames", "spu_link.cached", "spu_link.operators")
"""Modules that call whatever function they are given."""

CALLS_FILE = "DAEMON_CALLS_FILE"
"""Environment variable: where the daemon writes its calls."""


class Calls:
    """The calls of this project's functions, in all threads of this process, from a moment on.

    Args:
        since: name of the function, as in ``__qualname__``, with whose first call they begin to count.

    Attributes:
        modules: each that was called, in the order of first calls.
        upwards: pairs of layers, the calling one below the called one.
        counted: whether they count now.
    """

    def __init__(self, since: str = "") -> None:
        self.modules: dict[str, None] = {}
        self.upwards: set[tuple[str, str]] = set()
        self.counted = False
        self._since = since

    def start(self) -> None:
        """Follow this thread, and those that it starts from now on."""
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def write(self, path: Path) -> None:
        """Stop to follow this thread, and write the modules."""
        sys.setprofile(None)
        path.write_text(json.dumps(list(self.modules)))

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        self.counted = self.counted or frame.f_code.co_qualname == self._since
        if not self.counted:
            return
        called, caller = _module(frame), _module(frame.f_back)
        if called.startswith(("host_client.", "spu_link.", "spu_server.")):
            self.modules.setdefault(called)
            above, below = _layer(called), _layer(caller)
            if above and below and LAYERS.index(above) < LAYERS.index(below) and not caller.startswith(GENERAL):
                self.upwards.add((below, above))


def _module(frame: FrameType | None) -> str:
    return "" if frame is None else str(frame.f_globals.get("__name__"))


def _layer(module: str) -> str | None:
    return next((layer for layer in LAYERS if f"{module}.".startswith(f"{layer}.")), None)


def follow(address: str, **device: Any) -> None:
    """Take a step on a device; print the modules that it calls in this process, and the calls upwards.

    This is for a fresh process, whose threads all start within.
    """
    calls = Calls()
    calls.start()
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)), nn.CrossEntropyLoss()
    x, y = torch.randn(6, 8), torch.randint(0, 3, (6,))
    # A curvature that is given is not sent ahead, at a time of its own; nor is there a heartbeat meanwhile.
    options: dict[str, Any] = {"curvature": lambda: Rows(torch.ones(2, 63)), "lr": 0.1, "damping": 0.1}
    with connect(address, **device) as spu, spu.session(ttl=3600.0) as session:
        optimizer = TNGD(model, criterion, session, analog_time=20.0, **options)
        criterion(model(x), y).backward()
        calls.counted = True
        optimizer.step()
        calls.counted = False
        sys.setprofile(None)
    print(json.dumps({"modules": list(calls.modules), "upwards": sorted(calls.upwards)}))


class FollowedDaemon(Daemon):
    """A daemon whose calls, and those of its driver, are followed from the first program on.

    Args:
        folder: an empty one, for the socket and the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        super().__init__(folder / "s", "--driver", "followed", "--driver-option", f"calls={folder / 'driver'}")

    def modules(self, process: str) -> list[str]:
        """The modules that were called in a process, ``"daemon"`` or ``"driver"``, after the daemon has ended."""
        called: list[str] = json.loads((self._folder / process).read_text())
        return called

    def _start(self, arguments: list[str]) -> Forked:
        plugins = distribution(self._folder / "plugins", "followed", {"followed": f"{__name__}:FollowedEmulator"})
        path = os.pathsep.join([str(plugins), str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", path)
            patch.setenv(CALLS_FILE, str(self._folder / "daemon"))
            return Forked(command, __name__, *arguments, log=self.log_path)


def app() -> None:
    """Run the daemon's command line, and follow its calls."""
    from spu_server.cli import app as daemon

    calls = Calls("SpuService.Program")
    calls.start()
    try:
        daemon()
    finally:
        calls.write(Path(os.environ[CALLS_FILE]))


class FollowedEmulator(Emulator):
    """An emulator in whose process the calls of a driver are followed, from the first program on."""

    def __init__(self, options: DriverOptions) -> None:
        super().__init__(options)
        self._file = Path(str(options.settings["calls"]))
        self._calls = Calls("CheckedDriver.stage")
        self._calls.start()

    def close(self) -> None:
        """Release every tensor, and write what was called."""
        super().close()
        self._calls.write(self._file)
