"""A recorded run is played back as it was, and calls that are not in it are refused."""

from pathlib import Path

import pytest
import torch

from host_client import connect
from spu_link.errors import DeviceFault, NotInLog, ReadInPast
from spu_link.operators import Rows
from spu_server.drivers.event_log import Log
from spu_server.replay import replay
from tests.pressure import time_enough

A = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])
B = torch.tensor([1.0, -2.0, 3.0])
PROGRAM = {"damping": 0.5, "noise": 0.1, "start": "drive"}


def run(session) -> list[torch.Tensor]:
    first = session.solve(Rows(A), B, **PROGRAM, analog_time=2.0)
    second = session.solve(Rows(A), first.value, **PROGRAM, analog_time=4.0, window=1.0)
    session.advance(1.0)
    return [first.value, second.value, session.read().value]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, list[torch.Tensor]]:
    folder = tmp_path_factory.mktemp("log")
    with connect("inproc:", record=folder, clock="stepped", seed=3, cells=100) as spu, spu.session() as session:
        return folder, run(session)


@pytest.fixture
def played(recorded):
    options = {"driver": "replay", "driver_option": {"log": str(recorded[0])}, "clock": "stepped"}
    with connect("inproc:", **options) as spu, spu.session() as session:
        yield session


def test_the_same_calls_give_the_readings_of_the_log(recorded, played):
    assert all(torch.equal(a, b) for a, b in zip(recorded[1], run(played), strict=True))
    with pytest.raises(NotInLog, match="ended"):
        played.read()
    info = played.spu.info
    assert (info.driver, info.cells, info.state) == ("replay", 100, "running")
    assert "state" not in info.features


MISFITS = {
    "another damping": (lambda s: s.program(Rows(A), B, **PROGRAM | {"damping": 0.6}), r"program.damping is 0.6.*0.5"),
    "another size": (lambda s: s.program(Rows(A[:, :2]), B[:2], **PROGRAM), r"program.cells is 2.*3"),
    "another dtype": (lambda s: s.program(Rows(A), B.double(), **PROGRAM), r"float64.*float32"),
    "another start": (lambda s: s.program(Rows(A), B, **PROGRAM | {"start": "keep"}), r"program.start is keep.*drive"),
    "another time": (
        lambda s: s.solve(Rows(A), B, **PROGRAM, analog_time=2.5),
        r"at is 2.5 τ, where the log has 2.0 τ in its call 3",
    ),
    "an average": (lambda s: s.solve(Rows(A), B, **PROGRAM, analog_time=2.0, window=1.0), "an average.*the state"),
    "a program more": (
        lambda s: (s.program(Rows(A), B, **PROGRAM), s.program(Rows(A), B, **PROGRAM)),
        "call is stage, where the log has read",
    ),
}


@pytest.mark.parametrize(("calls", "message"), MISFITS.values(), ids=MISFITS)
def test_a_call_that_does_not_fit_is_refused_and_the_log_stays(played, calls, message):
    with pytest.raises(NotInLog, match=message):
        calls(played)
    with pytest.raises(NotInLog, match="the log stays there"):
        calls(played)


def test_a_log_of_a_free_clock_is_played_at_other_times(tmp_path):
    def solve(session, seconds):
        first = session.solve(Rows(A), B, noise=0.1, analog_time=5.0)
        return [first.value, session.read(at=session.clock.device_time() + 1000.0 * seconds, window=5.0).value]

    for seconds, attempt in time_enough(0.5, ReadInPast):
        log = tmp_path / f"{seconds}"
        with attempt:
            with connect("inproc:", record=log, rate=1000.0, seed=3) as spu, spu.session() as session:
                values = solve(session, seconds)
            options = {"driver": "replay", "driver_option": {"log": str(log)}, "rate": 1000.0}
            with connect("inproc:", **options) as spu, spu.session() as session:
                assert all(torch.equal(a, b) for a, b in zip(values, solve(session, seconds), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "log=FOLDER"), ({"log": "/nowhere"}, "log.json"), ({"log": "LOG", "speed": "2"}, "one option")],
)
def test_without_a_log_it_does_not_open(recorded, options, message):
    options = {name: value.replace("LOG", str(recorded[0])) for name, value in options.items()}
    with pytest.raises(DeviceFault, match=message):
        connect("inproc:", driver="replay", driver_option=options, clock="stepped")


def test_a_log_of_another_clock_is_not_opened(recorded):
    with pytest.raises(DeviceFault, match="stepped clock"):
        connect("inproc:", driver="replay", driver_option={"log": str(recorded[0])}, clock="free")
    assert Log.load(recorded[0]).header.clock == "stepped"


def test_behind_a_daemon_it_plays_the_log_and_is_recorded_itself(recorded, daemon, tmp_path):
    options = ("--driver", "replay", "--driver-option", f"log={recorded[0]}", "--clock", "stepped")
    one = daemon(*options, "--record", str(tmp_path))
    with connect(one.address) as spu, spu.session() as session:
        assert all(torch.equal(a, b) for a, b in zip(recorded[1], run(session), strict=True))
        with pytest.raises(NotInLog, match="ended"):
            session.program(Rows(A), B, **PROGRAM)
    one.close()
    again = Log.load(tmp_path)
    assert again.closed
    assert (again.header.driver, again.header.options["settings"]) == ("replay", {"log": str(recorded[0])})
    assert replay(again).identical
