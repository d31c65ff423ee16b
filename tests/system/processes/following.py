"""The calls of this project's functions while a step is taken; for a fresh process, whose threads all start within."""

from __future__ import annotations

import json
import sys
import threading
from types import FrameType
from typing import Any

import torch
from torch import nn

from host_client import TNGD, Rows, connect

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


class Calls:
    """The calls of this project's functions while a step is taken.

    Attributes:
        modules: each that was called, in the order of first calls.
        upwards: pairs of layers, the calling one below the called one.
    """

    def __init__(self) -> None:
        self.modules: dict[str, None] = {}
        self.upwards: set[tuple[str, str]] = set()
        self.counted = False

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """Take a call into account; a profiling function of the interpreter."""
        if event != "call" or not self.counted:
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


def follow() -> None:
    """Take a step; print the modules that it calls, and the calls upwards."""
    calls = Calls()
    threading.setprofile(calls.note)
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)), nn.CrossEntropyLoss()
    x, y = torch.randn(6, 8), torch.randint(0, 3, (6,))
    # A curvature that is given is not sent ahead, at a time of its own; nor is there a heartbeat meanwhile.
    options: dict[str, Any] = {"curvature": lambda: Rows(torch.ones(2, 63)), "lr": 0.1, "damping": 0.1}
    with connect("inproc:", clock="stepped") as spu, spu.session(ttl=3600.0) as session:
        optimizer = TNGD(model, criterion, session, analog_time=20.0, **options)
        criterion(model(x), y).backward()
        calls.counted = True
        sys.setprofile(calls.note)
        optimizer.step()
        sys.setprofile(None)
        calls.counted = False
    print(json.dumps({"modules": list(calls.modules), "upwards": sorted(calls.upwards)}))
