"""Daemons, drivers and clients come and go, also without saying goodbye."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import grpc
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from host_client import aio, connect
from spu_link.errors import DeviceBusy, DeviceHalted, DeviceUnavailable, NoProgram, SessionExpired, StaleSession
from spu_link.operators import Rows
from tests.daemon import STOP_SECONDS, Daemon
from tests.system.device import LONG, A, B, SteadyDevice
from tests.system.raw import SECONDS, Raw, encoded, eventually, refused
from tngd.spu.v1 import spu_pb2 as pb

SERVER = str(Path(sys.executable).with_name("spu-server"))

ROWS, DRIVE = Rows(torch.ones(1, 3)), torch.ones(3)

# Clients.

HOLDER = """
import sys
import torch
from host_client import connect
from spu_link.operators import Rows

with connect(sys.argv[1], timeout=10.0) as spu:
    session = spu.open_session(ttl=float(sys.argv[2]))
    print("held", flush=True)
    sys.stdin.readline()
    try:
        session.program(Rows(torch.ones(1, 3)), torch.ones(3))
        print("done", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""

BUSY = """
import sys, time
from host_client import connect

with connect(sys.argv[1]) as spu, spu.session(ttl=0.5) as session:
    print("held", flush=True)
    end = time.monotonic() + 4 * 0.5
    total = 0
    while time.monotonic() < end:
        total += sum(range(100_000))  # holds the interpreter, but for its turns
    print("alive" if session.advance(0.0) >= 0 else "", flush=True)
"""


class Client:
    """A process that holds the device."""

    def __init__(self, code: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.line() == "held"

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_client_that_falls_silent_frees_the_device_after_the_time_to_live(stepped, how):
    ttl = 1.0
    device = SteadyDevice(stepped)
    with Client(HOLDER, device.address, str(ttl)) as client, connect(device.address) as spu:
        client.process.send_signal(how)
        begin = time.monotonic()
        with pytest.raises(DeviceBusy) as caught:
            spu.open_session()
        assert 0.0 < caught.value.retry_after <= ttl
        eventually(lambda: spu.info.session_holder is None, "the device is free")
        assert time.monotonic() - begin < ttl + 2.0
    device.assert_unharmed()


def test_a_zombie_changes_nothing_when_it_wakes_up(stepped):
    device = SteadyDevice(stepped)
    with Client(HOLDER, device.address, "0.3") as zombie, connect(device.address) as spu:
        zombie.process.send_signal(signal.SIGSTOP)
        eventually(lambda: spu.info.session_holder is None, "the device is free")
        with spu.session():
            zombie.process.send_signal(signal.SIGCONT)
            zombie.go_on()
            assert zombie.line() == "StaleSession"
    with Client(HOLDER, device.address, "0.3") as zombie, connect(device.address) as spu:
        zombie.process.send_signal(signal.SIGSTOP)
        eventually(lambda: spu.info.session_holder is None, "the device is free")
        zombie.process.send_signal(signal.SIGCONT)
        zombie.go_on()
        assert zombie.line() == "SessionExpired"
    device.assert_unharmed()


def test_what_a_zombie_waited_for_does_not_hold_up_the_next_session(stepped):
    device = SteadyDevice(stepped)
    with Raw(device.address) as zombie:
        zombie.open(ttl=0.2)
        header, data = encoded_program(zombie)
        header.not_before = zombie.info().time + 1e6
        waiting = zombie.stub.Program(iter(_messages(header, data)), timeout=SECONDS)
        reading = zombie.stub.Read(pb.ReadRequest(session=zombie.session, at=header.not_before), timeout=SECONDS)
        zombie.wait_until_free()
        device.assert_unharmed()  # with a session and a program of its own
        for call in (waiting, reading):
            with refused(SessionExpired, "ended while"):
                list(call)


def encoded_program(raw):
    from spu_link.program import Program

    header, data = encoded(Program(ROWS, DRIVE))
    header.session.CopyFrom(raw.session)
    return header, data


def _messages(header, data):
    from tests.system.raw import messages

    return messages(header, data)


def test_the_heartbeat_keeps_a_session_while_the_client_computes(stepped):
    with Client(BUSY, stepped.address) as client, connect(stepped.address) as spu:
        assert client.line() == "alive"
        eventually(lambda: spu.info.session_holder is None, "the device is given back")


async def test_closing_a_session_ends_what_still_waits_in_it(stepped):
    SteadyDevice(stepped)
    async with await aio.connect(stepped.address) as spu:
        session = await spu.open_session()
        reading = asyncio.create_task(session.read(at=1e9, timeout=SECONDS))
        await spu.info()
        await spu.info()
        await session.close()
        with pytest.raises(SessionExpired):
            await asyncio.wait_for(reading, 5.0)


# The end of a daemon.


def children_of(daemon: Daemon) -> list[psutil.Process]:
    return psutil.Process(daemon.process.pid).children(recursive=True)


def socket_of(daemon: Daemon) -> Path:
    return Path(daemon.address.removeprefix("unix:"))


async def test_sigterm_finishes_short_readings_fails_long_ones_and_leaves_nothing_behind(daemon):
    one = daemon("--clock", "free", "--rate", "1000")
    children = children_of(one)
    assert children
    async with await aio.connect(one.address) as spu:
        session = await spu.open_session()
        applied = await session.program(ROWS, DRIVE, damping=1.0, start="drive")
        await session.read()
        now = (await spu.info()).time
        short = asyncio.create_task(session.read(at=now + 1000.0))
        long = asyncio.create_task(session.read(at=now + 1e6))
        await spu.info()
        await spu.info()
        code, seconds = await asyncio.to_thread(one.stop)
        assert (await short).sequence == applied.sequence
        with pytest.raises(DeviceUnavailable, match=r"stopping|spu-server serve"):
            await long
        with pytest.raises(DeviceUnavailable):
            await session.read()
        await session.close()
    assert code == 0, one.log
    assert seconds < STOP_SECONDS
    assert not socket_of(one).exists()
    _, alive = psutil.wait_procs(children, timeout=5.0)  # the interpreter's own helpers see it end, and follow
    assert not alive


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_daemon_ends_at_once(daemon, name):
    one = daemon()
    begin = time.monotonic()
    one.process.send_signal(name)
    assert one.process.wait(timeout=STOP_SECONDS) == 0
    assert time.monotonic() - begin < STOP_SECONDS
    assert '"event": "stopped"' in one.log


def test_a_killed_daemon_leaves_no_driver_behind_and_its_socket_can_be_taken_over(daemon, tmp_path_factory):
    one = daemon("--clock", "stepped")
    SteadyDevice(one)
    with Raw(one.address) as raw:
        session = raw.open()
    children = children_of(one)
    one.process.kill()
    one.process.wait()
    _, alive = psutil.wait_procs(children, timeout=10.0)
    assert not alive
    assert socket_of(one).exists()
    with Daemon(socket_of(one), "--clock", "stepped") as heir:
        SteadyDevice(heir).assert_unharmed()
        with Raw(heir.address) as raw:
            raw.session.CopyFrom(session)
            with refused(SessionExpired, "restarted"):
                raw.read()
            raw.session.Clear()
    assert not socket_of(heir).exists()


# The beginning of one.


def refusal(*options: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and standard error of a daemon that does not start."""
    done = subprocess.run(
        [SERVER, "serve", *options],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "400", **(env or {})},
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_second_daemon_on_a_living_socket_is_refused(stepped, tmp_path):
    first = tmp_path / "first"
    code, told = refusal("--listen", f"unix:{first}", "--listen", stepped.address)
    assert code == 1
    assert f"{stepped.address} is in use" in told
    assert not first.exists()
    with connect(stepped.address) as spu:
        assert spu.info.clock == "stepped"


def test_the_socket_is_for_its_owner_alone(stepped):
    mode = socket_of(stepped).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_an_address_that_others_can_reach_needs_insecure_remote():
    code, told = refusal("--listen", "0.0.0.0:0")
    assert code == 1
    assert "0.0.0.0:0" in told
    assert "--insecure-remote" in told


def test_with_insecure_remote_it_listens_where_it_is_told_and_says_on_which_port(daemon):
    one = daemon("--listen", "0.0.0.0:0", "--listen", "127.0.0.1:0", "--insecure-remote", "--clock", "stepped")
    assert one.addresses[0] == one.address
    ports = [address.rpartition(":")[2] for address in one.addresses[1:]]
    assert [address.rpartition(":")[0] for address in one.addresses[1:]] == ["0.0.0.0", "127.0.0.1"]
    assert "0" not in ports
    for address in (one.address, *(f"127.0.0.1:{port}" for port in ports)):
        with connect(address) as spu:
            assert spu.info.driver == "emulator"
    code, told = refusal("--listen", one.addresses[2])
    assert code == 1
    assert one.addresses[2] in told


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--rate", "5", "--clock", "stepped"], "--rate"),
        (["--max-bytes", "0"], "--max-bytes"),
        (["--clock", "broken"], "--clock"),
    ],
)
def test_a_bad_setting_is_named(options, name):
    code, told = refusal(*options)
    assert code == 2
    assert name in told


def test_an_unknown_driver_is_answered_with_those_there_are(tmp_path):
    code, told = refusal("--listen", f"unix:{tmp_path}/s", "--driver", "abacus")
    assert code == 1
    assert "abacus" in told
    assert "emulator" in told
    assert not (tmp_path / "s").exists()


def test_help_names_every_option_with_its_unit_and_default():
    done = subprocess.run(
        [SERVER, "serve", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "300", "TERM": "dumb"},
    )
    assert done.returncode == 0
    help_of = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("│ --")}
    settings = {f"--{name}".replace("_", "-") for name in settings_names()} | {"--config"}
    assert set(help_of) - {"--help"} == settings
    for option in settings:
        assert "default" in help_of[option], option
    for option, unit in {
        "--rate": "τ per second",
        "--tau": "seconds",
        "--max-bytes": "bytes",
        "--cells": "cells",
    }.items():
        assert unit in help_of[option]


def settings_names():
    from spu_server.config import ServeSettings

    return ServeSettings.model_fields


def test_options_go_before_the_environment_and_that_before_the_file(tmp_path, monkeypatch, daemon):
    config = tmp_path / "spu.toml"
    config.write_text('rate = 3.0\ncells = 30\nseed = 3\nclock = "free"\n')
    monkeypatch.setenv("SPU_RATE", "2.0")
    monkeypatch.setenv("SPU_CELLS", "20")
    one = daemon("--config", str(config), "--rate", "1.0")
    with connect(one.address) as spu:
        assert (spu.info.rate, spu.info.cells, spu.info.clock) == (1.0, 20, "free")


def test_the_health_service_says_that_it_serves(stepped):
    with grpc.insecure_channel(stepped.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tngd.spu.v1.SpuService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


# Halt.


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
                await asyncio.wait_for(waiting, 5.0)
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


def test_a_stale_reference_closes_nothing(stepped):
    SteadyDevice(stepped)
    with Raw(stepped.address) as zombie, connect(stepped.address) as spu:
        zombie.open(ttl=0.1)
        zombie.wait_until_free()
        with spu.session() as session:
            zombie.__exit__()
            session.advance(0.0)
            assert spu.info.session_holder
        zombie.session.Clear()


def test_a_blocking_call_that_is_interrupted_is_cancelled_at_the_device(stepped):
    SteadyDevice(stepped)
    with connect(stepped.address) as spu, spu.session() as session:
        solution = session.solve(Rows(A), B, damping=0.5, analog_time=LONG)
        previous = signal.signal(signal.SIGALRM, _interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                session.read(at=solution.time + 50.0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, previous)
        assert session.advance(100.0) == pytest.approx(solution.time + 100.0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_stale_session_and_expired_session_are_different_errors():
    assert StaleSession.code == "ABORTED"
    assert SessionExpired.code == "FAILED_PRECONDITION"
