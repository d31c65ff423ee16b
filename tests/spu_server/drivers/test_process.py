"""The daemon's end of a driver's process."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from spu_server.drivers.base import DriverOptions
from spu_server.drivers.process import DriverProcess


@pytest.mark.timeout(30)
async def test_a_wake_without_an_answer_does_not_block_the_loop() -> None:
    """The loop may have seen an answer that was received before it got round to say so."""
    driver = DriverProcess("emulator", DriverOptions())
    await driver.start()
    os.kill(driver.pid, signal.SIGSTOP)
    try:
        call = asyncio.create_task(driver.call("halt", 0.0))
        for _ in range(20):
            await asyncio.sleep(0)
        assert driver._came is not None
        driver._readable()
        async with asyncio.timeout(10):
            await asyncio.sleep(0.05)  # hangs where the answer is received without being there
        assert not call.done()
    finally:
        os.kill(driver.pid, signal.SIGCONT)
    await call
    await driver.close()
