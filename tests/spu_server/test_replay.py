"""A run replayed from its log gives the same readings, bit for bit; and it is reported where it does not."""

import asyncio
import json
import os
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from typer.testing import CliRunner

from host_client import Session, aio, connect
from spu_lab.cli import app
from spu_link.errors import DeviceFault, InvalidProgram, LogUnusable, ReadInPast
from spu_link.operators import Dense, Kept, LayerRows, LinearRows, Rows
from spu_server.drivers.event_log import DATA, EVENTS, Log
from spu_server.drivers.log_folder import HEADER
from spu_server.replay import replay
from tests.daemon import Daemon
from tests.plugins.install import distribution
from tests.system.raw import eventually

ROOT = Path(__file__).parent.parent.parent
CELLS = 410 + 50


def factors(samples: int, seed: int) -> LayerRows:
    """Two layers, m = 2·samples rows: many enough for the Lanczos process if samples is 150."""
    generator = torch.Generator().manual_seed(seed)
    inputs, cotangents = torch.randn(samples, 40, generator=generator), torch.randn(2, samples, 10, generator=generator)
    rows = torch.randn(2 * samples, 50, generator=generator)
    return LayerRows([LinearRows(inputs, cotangents / samples, bias=True), Rows(rows / samples)])


def drive(seed: int) -> torch.Tensor:
    return torch.randn(CELLS, generator=torch.Generator().manual_seed(seed))


def exercise(session: Session) -> list[torch.Tensor]:
    """Ask a driver for all there is, on a stepped clock: every start, noise, windows, kept operators, sizes, a halt."""
    values = []
    for k, samples in enumerate((20, 150)):
        for start in ("keep", "drive", drive(k)):
            arguments = {"damping": 0.1, "noise": 0.01, "start": start, "precision": "int16"}
            values.append(session.solve(factors(samples, k), drive(9), analog_time=3.0, window=1.0, **arguments).value)
            session.advance(0.5)
            values.append(session.read().value)
        sequence = session.spu.info.sequence
        values.append(session.solve(Kept(sequence, CELLS), drive(8), analog_time=2.0, damping=0.2, noise=0.1).value)
    with pytest.raises(InvalidProgram):
        session.program(factors(20, 0), drive(9) * float("nan"))
    values.append(session.solve(Dense(torch.eye(6) + 1.0), torch.ones(6), noise=1.0, analog_time=1.0).value)
    session.spu.halt("in between")
    return values


async def in_flight(folder: Path) -> None:
    """Readings with windows that stay open over programs, one of which has another number of cells."""
    async with await aio.connect("inproc:", record=folder, clock="stepped", seed=4) as spu, spu.session() as session:
        await session.program(factors(20, 0), drive(1), damping=0.1, noise=0.1)
        readings = [asyncio.create_task(session.read(at=4.0 + k, window=3.0 + k)) for k in range(3)]
        await asyncio.sleep(0)
        await session.advance(3.0)
        await session.program(factors(150, 1), drive(2), damping=0.1, noise=0.2, start="drive")
        await session.advance(2.5)
        await session.program(Rows(torch.ones(1, 3)), torch.ones(3), noise=0.3)
        await session.advance(2.0)
        assert [(await reading).time for reading in readings[:2]] == [4.0, 5.0]
        with pytest.raises(ReadInPast):
            await readings[2]
        await session.read()


@pytest.fixture(scope="module")
def stepped_log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[torch.Tensor]]:
    """The log of a stepped device in this process, and the readings that its client had."""
    folder = tmp_path_factory.mktemp("log")
    with connect("inproc:", record=folder, clock="stepped", seed=7) as spu:
        with spu.session() as session:
            values = exercise(session)
        with spu.session() as session:  # clears the halt
            values.append(session.solve(Rows(torch.ones(1, 3)), torch.ones(3), noise=1.0, analog_time=1.0).value)
    return folder, values


def test_a_stepped_run_gives_the_same_bits_again(stepped_log):
    folder, values = stepped_log
    log = Log.load(folder)
    outcome = replay(log)
    assert (outcome.identical, outcome.same, outcome.first) == (True, len(values), None)
    assert outcome.closed
    assert outcome.remarks == ()
    logged = [log.bytes_of(event.value) for event in log.events if event.call == "read"]
    assert [bytes(value) for value in logged] == [value.numpy().tobytes() for value in values]
    assert {"start", "stage", "commit", "open_window", "read", "halt", "close"} <= {event.call for event in log.events}
    assert any(event.refused == "INVALID_PROGRAM" for event in log.events)
    assert json.loads((log.folder / HEADER).read_text())["options"]["seed"] == 7


def test_windows_over_several_programs_give_the_same_bits_again(tmp_path):
    asyncio.run(asyncio.wait_for(in_flight(tmp_path), 60.0))
    log = Log.load(tmp_path)
    outcome = replay(log)
    assert outcome.identical
    assert outcome.same == 3
    assert any(event.refused == "READ_IN_PAST" for event in log.events)


def test_a_state_that_was_restored_is_part_of_the_run(tmp_path):
    arguments = {"damping": 0.1, "noise": 0.05, "analog_time": 2.0}
    with connect("inproc:", clock="stepped", seed=1) as spu, spu.session() as session:
        session.solve(factors(150, 0), drive(0), **arguments)
        state = session.save_state()
    with connect("inproc:", record=tmp_path, clock="stepped", seed=2) as spu, spu.session() as session:
        session.restore_state(state)  # before anything has run
        session.solve(factors(20, 1), drive(1), **arguments)
        own = session.save_state()
        first = session.solve(factors(20, 2), drive(2), **arguments)
        session.restore_state(own)
        again = session.solve(factors(20, 2), drive(2), **arguments)
    assert torch.equal(first.value, again.value)
    log = Log.load(tmp_path)
    outcome = replay(log)
    assert outcome.identical, outcome
    assert outcome.same == 3
    assert [event.call for event in log.events].count("restore") == 2


def test_an_analog_board_gives_the_same_bits_again(tmp_path):
    board = {"driver": "analog", "driver_option": {"preset": "8-bit"}}
    with connect("inproc:", record=tmp_path, clock="stepped", seed=7, **board) as spu, spu.session() as session:
        values = exercise(session)
    outcome = replay(Log.load(tmp_path))
    assert outcome.identical, outcome
    assert outcome.same == len(values)


def test_a_free_running_daemon_under_load_and_killed_gives_the_same_bits_again(tmp_path):
    """Three threads program and read without end; the daemon is killed in the middle of it."""

    def work(session: Session, number: int) -> list[torch.Tensor]:
        values = []
        for k in range(6):
            samples, start = (20, "keep") if (k + number) % 2 else (150, "drive")
            with session.upload(factors(samples, k)) as upload:
                reading = upload.solve(
                    drive(number), analog_time=40.0, window=20.0, damping=0.1, noise=0.01, start=start
                )
            values.append(reading.value)
            with suppress(ReadInPast):  # where this machine is too slow for a reading so soon
                values.append(session.read(at=session.clock.device_time() + 100.0).value)
        return values

    options = ("--rate", "5000", "--seed", "3", "--record", str(tmp_path / "logs"), "--listen", "127.0.0.1:0")
    with Daemon(tmp_path / "s", *options) as daemon:
        with connect(daemon.addresses[1], timeout=30.0) as far, far.session() as session:
            values = work(session, 3)
        with connect(daemon.address, timeout=30.0) as near, near.session() as session, ThreadPoolExecutor(3) as pool:
            for found in pool.map(lambda number: work(session, number), range(3)):
                values += found
            daemon.kill()
    log = Log.load(tmp_path / "logs")
    assert log.header.clock == "free"
    assert not log.closed
    outcome = replay(log)
    assert outcome.identical, outcome
    assert outcome.same >= len(values) >= 24
    logged = {bytes(log.bytes_of(event.value)) for event in log.events if event.value is not None}
    assert {value.numpy().tobytes() for value in values} <= logged
    assert any("killed" in remark for remark in outcome.remarks)
    ran = CliRunner().invoke(app, ["replay", str(tmp_path / "logs"), "--json"])
    assert ran.exit_code == 0
    assert json.loads(ran.stdout)["same"] == outcome.same


def test_a_driver_that_crashed_and_was_restarted_gives_the_same_bits_again(tmp_path, monkeypatch):
    plugins = distribution(tmp_path / "plugins", "broken-drivers", {"broken": "tests.plugins.broken:Broken"})
    monkeypatch.syspath_prepend(str(plugins))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(plugins), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    how = tmp_path / "how"
    options = ("--driver", "broken", "--driver-option", f"file={how}", "--clock", "stepped")
    arguments = {"damping": 0.1, "noise": 0.05, "analog_time": 2.0}
    with Daemon(tmp_path / "s", *options, "--record", str(tmp_path / "log")) as daemon, connect(daemon.address) as spu:
        with spu.session() as session:
            before = session.solve(factors(20, 0), drive(0), **arguments)
            how.write_text("segfault")
            with pytest.raises(DeviceFault, match="SIGSEGV"):
                session.read()
        eventually(lambda: spu.info.restarts == 1, "the driver has been restarted")
        with spu.session() as session:
            after = session.solve(factors(20, 0), drive(0), **arguments)
    assert torch.equal(before.value, after.value)  # the restarted driver begins with the seed
    log = Log.load(tmp_path / "log")
    assert [event.call for event in log.events].count("start") == 2
    assert sum(event.fault != "" for event in log.events) >= 1
    outcome = replay(log)
    assert outcome.identical, outcome
    assert outcome.same == 2


def test_a_line_that_was_broken_off_is_left_out(stepped_log, tmp_path):
    log = Log.load(copied(stepped_log[0], tmp_path))
    lines = (log.folder / EVENTS).read_text()
    (log.folder / EVENTS).write_text(lines[: lines.rindex("{") + 9])
    shorter = Log.load(log.folder)
    assert (len(shorter.events), shorter.closed) == (len(log.events) - 1, False)
    assert replay(shorter).identical


def test_another_seed_is_reported_with_time_and_size_of_the_difference(stepped_log, tmp_path):
    folder = Log.load(copied(stepped_log[0], tmp_path)).folder
    header = json.loads((folder / HEADER).read_text())
    header["options"]["seed"] = 8
    header["versions"]["torch"] = "1.0"
    (folder / HEADER).write_text(json.dumps(header))
    outcome = replay(Log.load(folder))
    assert not outcome.identical
    assert (outcome.first.reading, outcome.first.time) == (1, 3.0)
    assert 0.0 < outcome.first.relative < 2.0
    ran = CliRunner().invoke(app, ["replay", str(tmp_path)])
    assert ran.exit_code == 1
    assert "reading 1, at 3.0 τ" in ran.output
    assert "recorded with torch 1.0" in ran.output


def test_another_answer_is_reported(stepped_log, tmp_path):
    folder = Log.load(copied(stepped_log[0], tmp_path)).folder
    lines = (folder / EVENTS).read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"refused": "UPLOAD_CORRUPT"})
    (folder / EVENTS).write_text("\n".join(lines) + "\n")
    first = replay(Log.load(folder)).first
    assert (first.event, first.what) == (1, "stage: done where the log has refused with UPLOAD_CORRUPT")


def copied(log: Path, to: Path) -> Path:
    shutil.copytree(Log.load(log).folder, to / "copy")
    return to


def test_damaged_bytes_are_found(stepped_log, tmp_path):
    log = Log.load(copied(stepped_log[0], tmp_path))
    place = next(event.arguments[1].offset for event in log.events if event.call == "stage")
    with (log.folder / DATA).open("r+b") as file:
        file.seek(place + 5)
        byte = file.read(1)
        file.seek(place + 5)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(LogUnusable, match="damaged"):
        replay(log)
    ran = CliRunner().invoke(app, ["replay", str(tmp_path)])
    assert ran.exit_code == 1


def test_a_folder_with_no_log_or_several_says_so(stepped_log, tmp_path):
    with pytest.raises(LogUnusable, match=HEADER):
        Log.load(tmp_path)
    for name in ("one", "two"):
        shutil.copytree(Log.load(stepped_log[0]).folder, tmp_path / name)
    with pytest.raises(LogUnusable, match="one, two"):
        Log.load(tmp_path)


def test_a_full_disk_ends_the_log_and_not_the_device(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with connect("inproc:", record=tmp_path, clock="stepped") as spu, spu.session() as session, capture_logs() as logs:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, before[1]))
            values = [session.solve(factors(150, k), drive(k), analog_time=1.0).value for k in range(10)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(values) == 10
    assert ["recording has ended" in line["event"] for line in logs] == [True]
    log = Log.load(tmp_path)
    outcome = replay(log)
    assert outcome.identical
    assert 1 <= outcome.same < 10
    assert not outcome.closed


def test_a_log_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogUnusable, match="file"):
        connect("inproc:", record=tmp_path / "file" / "logs")


def test_no_descriptor_is_left_open(tmp_path):
    def descriptors() -> int:
        with connect("inproc:", record=tmp_path / "log", clock="stepped") as spu, spu.session() as session:
            session.solve(Rows(torch.ones(1, 3)), torch.ones(3), analog_time=1.0)
        replay(Log.load(tmp_path / "log"))
        return len(os.listdir("/proc/self/fd"))

    few = descriptors()
    for number in range(5):
        (tmp_path / "log").rename(tmp_path / f"log {number}")
        assert descriptors() <= few  # tests before have left gRPC connections, which it may be closing now
