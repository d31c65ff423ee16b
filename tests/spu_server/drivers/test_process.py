"""The daemon's end of a driver's process."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spu_link import wire
from spu_link.errors import DeviceFault
from spu_link.operators import Dense
from spu_link.program import Program
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.hosted import CheckedDriver
from spu_server.drivers.process import DriverProcess
from tests.plugins.install import distribution


async def test_a_wake_without_an_answer_does_not_block_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop may have seen an answer that was received before it got round to say so."""
    wakes = []
    loop = asyncio.get_running_loop()
    add = loop.add_reader

    def add_reader(descriptor: int, wake: Callable[[], None]) -> None:
        wakes.append(wake)
        add(descriptor, wake)

    monkeypatch.setattr(loop, "add_reader", add_reader)
    driver = DriverProcess("emulator", DriverOptions(), deadline=60.0)
    await driver.start()
    os.kill(driver.pid, signal.SIGSTOP)
    try:
        call = asyncio.create_task(driver.call(CheckedDriver.halt, 0.0))
        for _ in range(20):
            await asyncio.sleep(0)
        wakes[-1]()
        for _ in range(20):
            await asyncio.sleep(0)  # hangs where the answer is received without being there
        assert not call.done()
    finally:
        os.kill(driver.pid, signal.SIGCONT)
    await call
    await driver.close()


async def test_a_call_whose_driver_failed_while_it_was_being_sent_does_not_wait_for_an_answer() -> None:
    driver = DriverProcess("emulator", DriverOptions(), deadline=60.0)
    await driver.start()
    os.kill(driver.pid, signal.SIGSTOP)
    # A moment inside of a call that nothing outside can bring about.
    driver._deadline.begin(60.0)  # noqa: SLF001
    driver._fault = "driver emulator: condemned"  # noqa: SLF001
    with pytest.raises(DeviceFault, match="condemned"):
        await driver._message("stage")  # noqa: SLF001
    await driver.close()


async def test_an_upload_that_is_held_back_longer_than_a_call_may_take_is_no_hang() -> None:
    """The modelled time of the paper's device, over a slow link."""
    settings = {"timing.hold": "true", "timing.link": str(32 / 0.9)}
    driver = DriverProcess("analog", DriverOptions(settings=settings), deadline=0.5)
    await driver.start()
    header, tensors = wire.header_of(Program(Dense(torch.eye(1, dtype=torch.float64)), torch.ones(1)))
    began = time.monotonic()
    await driver.stage(header.SerializeToString(), b"".join(wire.byte_views(tensors)))
    assert time.monotonic() - began >= 0.85
    await driver.close()


async def test_a_named_driver_that_is_broken_says_whose_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "acme.py").write_text("raise RuntimeError('no license')\n")
    monkeypatch.syspath_prepend(str(distribution(tmp_path, "acme-boards", {"acme": "acme:Board"})))
    driver = DriverProcess("acme", DriverOptions())
    with pytest.raises(DeviceFault, match=r"could not be opened.*'acme' of acme-boards 1.0.*no license"):
        await driver.start()
    await driver.close()
