"""Daemons that are not there, not ready, or no more."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
import torch

from host_client import aio, connect
from spu_link.errors import DeviceFault, DeviceUnavailable, InvalidProgram, NoProgram
from spu_link.operators import Rows
from tests.system.device import SteadyDevice
from tests.system.raw import SECONDS, Raw, refused


def test_no_program_to_read(daemon):
    one = daemon("--clock", "stepped")
    with Raw(one.address) as raw:
        raw.open()
        with refused(NoProgram, "program it first"):
            raw.read()
    with connect(one.address) as spu, spu.session() as session:
        assert spu.info.state == "idle"
        with pytest.raises(NoProgram, match="program it first"):
            session.read()
        with pytest.raises(NoProgram):
            session.read(window=0.0)
        session.advance(3.0)
        with pytest.raises(NoProgram):
            session.read(window=2.0)
    SteadyDevice(one).assert_unharmed()


def no_daemon_addresses(folder):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return f"unix:{folder}/nobody.sock", f"127.0.0.1:{port}"


def test_a_daemon_that_is_not_there(tmp_path):
    for address in no_daemon_addresses(tmp_path):
        begin = time.monotonic()
        with pytest.raises(DeviceUnavailable) as caught:
            connect(address, timeout=20.0)
        assert time.monotonic() - begin < 15.0
        assert f"spu-server serve --listen {address}" in str(caught.value)
        assert caught.value.found == address


@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1", "127.0.0.1:http", "inproc"])
def test_an_address_of_no_known_form(address):
    with pytest.raises(InvalidProgram, match="address"):
        connect(address)


async def waiting_read(session, spu):
    """A read that has reached the daemon, for a time that nothing brings about before the test is over."""
    reading = asyncio.create_task(session.read(at=1e6, timeout=SECONDS))
    for _ in range(2):
        await spu.info()  # on the same connection: by its answer the daemon has the read as well
    assert not reading.done()
    return reading


async def test_a_daemon_that_dies_in_the_middle_of_a_read(daemon):
    one = daemon("--clock", "stepped")
    SteadyDevice(one)
    async with await aio.connect(one.address) as spu, spu.session() as session:
        reading = await waiting_read(session, spu)
        begin = time.monotonic()
        one.kill()
        with pytest.raises(DeviceUnavailable, match=r"s is|spu-server serve"):
            await asyncio.wait_for(reading, SECONDS)
        assert time.monotonic() - begin < 15.0
        with pytest.raises(DeviceUnavailable):
            await session.advance(1.0)


async def test_a_driver_that_dies_is_a_fault_of_the_device_and_not_the_end_of_the_daemon(daemon):
    one = daemon("--clock", "stepped")
    SteadyDevice(one)
    async with await aio.connect(one.address) as spu:
        async with spu.session() as session:
            reading = await waiting_read(session, spu)
            one.driver_process().kill()
            with pytest.raises(DeviceFault, match="SIGKILL"):
                await asyncio.wait_for(reading, SECONDS)
            with pytest.raises(DeviceFault, match="SIGKILL"):
                await session.read()
            with pytest.raises(DeviceFault, match="SIGKILL"):
                await session.program(Rows(torch.ones(1, 2)), torch.ones(2))
        info = await spu.info()
        assert info.state in ("fault", "restarting")
        assert "SIGKILL" in info.fault
        with pytest.raises(DeviceFault, match="SIGKILL"):
            await spu.open_session()
    with Raw(one.address) as raw, refused(DeviceFault, "SIGKILL"):
        raw.open()
