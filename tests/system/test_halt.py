"""Whoever sees smoke stops the device, and only a new session starts it again."""

from __future__ import annotations

import asyncio

import pytest
import torch

from host_client import aio, connect
from spu_link.errors import DeviceHalted, NoProgram
from spu_link.operators import Rows
from tests.system.device import A, B, SteadyDevice
from tests.system.raw import SECONDS

ROWS, DRIVE = Rows(torch.ones(1, 3)), torch.ones(3)


async def test_a_halt_needs_no_session_and_ends_everything_at_once(stepped):
    SteadyDevice(stepped)
    async with await aio.connect(stepped.address) as holder, await aio.connect(stepped.address) as bystander:
        session = await holder.open_session()
        reading = asyncio.create_task(session.read(at=1e9, timeout=SECONDS))
        averaging = asyncio.create_task(session.read(at=1e9, window=1.0, timeout=SECONDS))
        program = asyncio.create_task(session.program(ROWS, DRIVE, not_before=1e9, timeout=SECONDS))
        for _ in range(3):
            await holder.info()
        now = (await holder.info()).time
        assert await bystander.halt("smoke in the lab") == now
        for waiting in (reading, averaging, program):
            with pytest.raises(DeviceHalted, match="smoke in the lab"):
                await asyncio.wait_for(waiting, SECONDS)
        for call in (session.read(), session.advance(1.0), session.program(ROWS, DRIVE)):
            with pytest.raises(DeviceHalted, match="smoke in the lab"):
                await call
        info = await bystander.info()
        assert (info.state, info.session_holder) == ("halted", None)
        await bystander.halt()  # once more is no error
        await session.close()
        async with bystander.session() as fresh:
            assert (await bystander.info()).state == "idle"
            with pytest.raises(NoProgram):
                await fresh.read()
            value = (await fresh.solve(Rows(A), B, damping=0.5, analog_time=0.0)).value
            assert not value.any()  # discharged
    SteadyDevice(stepped).assert_unharmed()


def test_a_halt_in_the_middle_of_an_advance_leaves_the_clock_where_it_stands(stepped):
    SteadyDevice(stepped)
    with connect(stepped.address) as spu:
        spu.halt("x" * 100_000)  # a reason that no status can carry whole
        with spu.session() as session:
            before = session.advance(0.0)
            assert session.advance(1.0) == pytest.approx(before + 1.0)
    with connect(stepped.address) as spu:
        session = spu.open_session()
        spu.halt("x" * 100_000)
        with pytest.raises(DeviceHalted, match="xxx"):
            session.read()
    SteadyDevice(stepped).assert_unharmed()
