"""An upload may be abandoned while its memory is being registered; programs after it lie in their own regions."""

from __future__ import annotations

import asyncio

import pytest
import torch

from host_client import aio
from tests.system.device import LONG
from tests.system.shared_memory.wide import DRIVE, EXPECTED, WIDE


@pytest.mark.parametrize("ticks", [*range(8), 12])
async def test_a_program_after_an_upload_that_was_abandoned_early_is_read_from_its_own_region(device, ticks):
    async with asyncio.timeout(30.0), await aio.connect(device.address) as spu, spu.session() as session:
        for _ in range(3):
            abandoned = session.upload(WIDE)
            for _ in range(ticks):
                await asyncio.sleep(0)
            await abandoned.abandon()
            reading = await session.solve(WIDE, DRIVE, damping=0.5, analog_time=LONG)
            torch.testing.assert_close(reading.value, EXPECTED, rtol=1e-6, atol=1e-9)
        assert set(session.bytes_by_path) == {"shared-memory"}
    await asyncio.to_thread(device.settle)
