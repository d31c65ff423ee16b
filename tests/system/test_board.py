"""The board driver against the simulator over real lines: what it returns is right, or it is not returned."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from serial.tools.list_ports_common import ListPortInfo

from host_client import connect
from spu_link.errors import Clipped, InvalidProgram, SpuError, UnsupportedBlock
from spu_link.operators import Dense, Rows
from spu_link.program import Program
from spu_server.board import link, transports
from spu_server.board.host import Host
from spu_server.board.link import RegisterLink
from spu_server.board.simulator.cells import BoardOptions
from spu_server.board.transports import connect as connect_line
from spu_server.drivers.base import DriverOptions, measured
from spu_server.drivers.board import Board
from tests.board import BoardSimulator
from tests.pressure import Undisturbed

CELLS = 8
TAU = BoardOptions.tau
RATE = 1 / TAU

BAD_LINE = ("--bit-errors", "1e-4", "--lost", "0.06", "--doubled", "0.2")
"""One frame of 20 bytes in 60, and one of 174 bytes in 8, is damaged each way, besides those that are lost.

So a request fails five times in a row, which rightly ends the driver, once in 10⁴ times, and a program once in 10³:
here each may be sent thirty times."""


def problem(seed: int, cells: int = CELLS, damping: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(cells, cells, generator=generator, dtype=torch.float64)
    matrix = a @ a.T / cells + damping * torch.eye(cells, dtype=torch.float64)
    return matrix, torch.randn(cells, generator=generator, dtype=torch.float64)


def at_age(matrix: torch.Tensor, drive: torch.Tensor, start: torch.Tensor, age: float) -> torch.Tensor:
    """The closed form: x(t) = e^(−Mt) x₀ + M⁻¹ (1 − e^(−Mt)) b."""
    values, vectors = torch.linalg.eigh(matrix)
    decay = torch.exp(-values * age)
    return vectors @ (decay * (vectors.T @ start) + (1 - decay) / values * (vectors.T @ drive))


def codes_error(matrix: torch.Tensor, drive: torch.Tensor, start: torch.Tensor) -> float:
    """Max change of a component by 16-bit codes: each coupling, drive, start and reading is off by half a code.

    With δ for half a code of each, ‖Δx‖ ≤ δ_start + (δ_drive √n + δ_M n ‖x‖) / λ_min + δ_reading, at any time.
    """
    n = len(drive)
    smallest = float(torch.linalg.eigvalsh(matrix)[0])
    scale = 8.0 * (float(drive.norm()) / smallest + float(start.norm()))
    code = scale / 32767
    bound = float(start.norm()) + float(drive.norm()) / smallest
    return (
        1.05 * math.sqrt(n) * (code + (float(drive.abs().max()) + n * float(matrix.max()) * bound) / 65534 / smallest)
    )


@pytest.fixture(scope="module")
def tcp():
    with BoardSimulator() as board:
        yield board


def board_at(address: str, **options) -> Board:
    return Board(DriverOptions(settings={"address": address}, **options))


def run(board: Board, at: float, seed: int, afters: list[float], start: str | torch.Tensor = "drive") -> float:
    """Program, take every reading, and compare; the largest error over what the codes allow."""
    matrix, drive = problem(seed)
    program = Program(Dense(matrix), drive, start=start)
    program.check_values()
    board.stage(program)
    board.schedule([(after, 0.0) for after in afters])
    board.commit(at)
    x0 = drive if isinstance(start, str) else start
    allowed = codes_error(matrix, drive, x0)
    worst = 0.0
    for after in afters:
        value, taken = measured(board.read(at + after, None), at + after)
        assert abs(taken - (at + after)) <= 0.5 / (BoardOptions.tick_rate * TAU) * 1.001 + 1e-9 * at
        worst = max(worst, float((value - at_age(matrix, drive, x0, taken - at)).abs().max()) / allowed)
    return worst


SLOW = ("--latency", "0.05")
TCP = "tcp:127.0.0.1:0"


@pytest.mark.parametrize(
    ("kind", "line"),
    [(TCP, BAD_LINE), ("pty", BAD_LINE), ("pty", ()), (TCP, BAD_LINE + SLOW), ("pty", BAD_LINE + SLOW)],
    ids=["tcp-bad", "pty-bad", "pty-good", "tcp-bad-slow", "pty-bad-slow"],
)
def test_every_reading_over_a_line_is_right_at_the_tick_it_was_armed_for(kind, line, monkeypatch):
    # On a busy machine an answer comes late, which is not to pass for one that is lost, nor five of them for the end.
    limits = {"attempts": 30} if line else {"timeout": 30.0, "max_timeout": 30.0}
    hosts = []

    def make_host() -> Host:
        hosts.append(Host(**limits))
        return hosts[-1]

    monkeypatch.setattr(link, "Host", make_host)
    with BoardSimulator("--listen", kind, *line) as simulator:
        board = board_at(simulator.address)
        try:
            for step in range(1 if "--latency" in line else 3):
                assert run(board, 100.0 * step, step, [0.0, 0.5, 3.0, 20.0]) < 1.0
            (host,) = hosts
            if line:
                assert host.repeated > 0, "the line did nothing"
                assert host.strangers > 0, "the line did nothing"
            else:
                assert (host.damaged, host.repeated, host.strangers) == (0, 0, 0)
        finally:
            board.close()


def test_readings_are_exact_where_the_line_is_fifty_times_slower_than_the_cells():
    with BoardSimulator("--latency", "0.05") as simulator:
        board = board_at(simulator.address)
        assert run(board, 0.0, 1, [0.25, 1.0, 2.0]) < 1.0
        # One that was not armed comes later than asked, and says so.
        matrix, drive = problem(1)
        value, taken = measured(board.read(3.0, None), 3.0)
        assert taken > 3.0 + 0.025 / TAU * 0.99
        assert float((value - at_age(matrix, drive, drive, taken)).abs().max()) < codes_error(matrix, drive, drive)
        board.close()


def test_readings_outlive_the_program_they_came_with_and_a_dropped_one_frees_its_slot(tcp):
    board = board_at(tcp.address)
    for step in range(12):  # 24 readings in 16 slots, of which 12 are never fetched
        assert run(board, 50.0 * step, step, [1.0]) < 1.0
        matrix, drive = problem(step)
        board.stage(Program(Dense(matrix), drive, start="drive"))
        board.schedule([(1.0, 0.0)])
        board.commit(50.0 * step + 10.0)
    matrix, drive = problem(90)
    board.stage(Program(Dense(matrix), drive, start="drive"))
    board.schedule([(200.0, 0.0)])
    board.commit(2000.0)
    second, other = problem(91)
    board.stage(Program(Dense(second), other, start=torch.zeros(CELLS, dtype=torch.float64)))
    board.commit(2010.0)
    value, taken = measured(board.read(2200.0, None), 2200.0)
    expected = at_age(second, other, torch.zeros_like(other), taken - 2010.0)
    assert float((value - expected).abs().max()) < codes_error(second, other, other)
    board.close()


def test_noise_at_rest_has_the_variance_it_should(tcp):
    """With 210 independent readings of 8 cells; a correct board fails once in 10⁶ times."""
    from tests.statistics import assert_standard_normal, whiten

    matrix, drive = problem(5, damping=2.0)  # the slowest cell forgets 16 e-foldings between two readings
    noise = 0.02
    board = board_at(tcp.address)
    samples = []
    afters = [8.0 * (k + 1) for k in range(15)]
    for step in range(14):
        board.stage(Program(Dense(matrix), drive, noise=noise, start="drive"))
        board.schedule([(after, 0.0) for after in afters])
        at = 1000.0 * step
        board.commit(at)
        samples += [measured(board.read(at + after, None), 0.0).value.numpy() for after in afters]
    board.close()
    mean = torch.linalg.solve(matrix, drive).numpy()
    assert_standard_normal(whiten(np.stack(samples), mean, noise * torch.linalg.inv(matrix).numpy()))


def test_what_a_board_cannot_do_is_refused_in_words_and_leaves_it_running(tcp):
    board = board_at(tcp.address)
    assert run(board, 0.0, 1, [1.0]) < 1.0
    eye, ones = torch.eye(CELLS, dtype=torch.float64), torch.ones(CELLS, dtype=torch.float64)
    with pytest.raises(UnsupportedBlock, match="dense"):
        board.stage(Program(Rows(torch.ones(1, 2)), torch.ones(2)))
    with pytest.raises(InvalidProgram, match="raise the damping"):
        board.stage(Program(Dense(torch.diag(torch.tensor([1.0, 1e-6]))), torch.ones(2)))
    with pytest.raises(InvalidProgram, match="give a start"):
        board.stage(Program(Dense(eye), 1e6 * ones, start="keep"))
    board.stage(Program(Dense(eye), ones, start="drive"))
    with pytest.raises(InvalidProgram, match="averages"):
        board.schedule([(1.0, 0.5)])
    with pytest.raises(InvalidProgram, match="slots free"):
        board.schedule([(float(k), 0.0) for k in range(40)])
    with pytest.raises(InvalidProgram, match="averages"):
        board.open_window(1, 5.0)
    matrix, drive = problem(1)
    value, taken = measured(board.read(5.0, None), 5.0)
    expected = at_age(matrix, drive, drive, taken)
    assert float((value - expected).abs().max()) < codes_error(matrix, drive, drive)
    board.close()


def test_a_state_beyond_the_converters_is_no_reading():
    with BoardSimulator("--adc-noise", "1e5") as simulator:
        board = board_at(simulator.address)
        board.stage(Program(Dense(torch.eye(CELLS)), torch.ones(CELLS), start="drive"))
        board.commit(0.0)
        with pytest.raises(Clipped, match="converters were at their end"):
            board.read(1.0, None)
        board.close()


def test_halt_discharges_the_cells_and_the_next_program_starts_from_zero(tcp):
    board = board_at(tcp.address)
    assert run(board, 0.0, 1, [1.0]) < 1.0
    watch = Undisturbed()
    board.halt(5.0)
    assert watch.seconds < 0.1
    with pytest.raises(SpuError, match="no program"):
        board.read(6.0, None)
    matrix, drive = problem(2)
    board.stage(Program(Dense(matrix), drive, start="keep"))
    board.schedule([(0.0, 0.0)])
    board.commit(7.0)
    assert float(measured(board.read(7.0, None), 7.0).value.abs().max()) == 0.0
    board.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "address"),
        ({"settings": {"address": "usb:1"}}, "tcp:HOST:PORT"),
        ({"settings": {"address": "tcp:127.0.0.1:1"}}, "refused"),
        ({"clock": "stepped", "settings": {"address": "tcp:127.0.0.1:1"}}, "clock free"),
    ],
)
def test_a_board_that_cannot_be_opened_says_why(options, words):
    with pytest.raises((ValueError, OSError), match=words):
        Board(DriverOptions(**options))


def test_a_rate_that_the_board_does_not_have_is_refused(tcp):
    with pytest.raises(ValueError, match=f"--rate {RATE:g}"):
        board_at(tcp.address, rate=5.0)


def test_what_is_no_board_is_not_believed(tcp):
    line = RegisterLink(connect_line(tcp.address))
    line.greet()
    with pytest.raises(ConnectionError, match="BAD_ADDRESS"):
        line.read(0xFFF0, 4)
    with pytest.raises(ConnectionError, match="READ_ONLY"):
        line.write(0x00, b"abcd")
    line.close()


def test_boards_on_serial_lines_are_discovered_where_nobody_holds_the_line(monkeypatch):
    with BoardSimulator("--listen", "pty") as simulator:
        path = simulator.address.removeprefix("serial:")
        monkeypatch.setattr(transports, "comports", lambda: [ListPortInfo(path), ListPortInfo("/dev/nowhere")])
        held = connect_line(simulator.address)
        assert Board.discover() == []
        held.close()
        (settings,) = Board.discover()
        board = Board(DriverOptions(settings=settings))
        assert board.capabilities.cells == CELLS
        board.close()


def test_a_daemon_serves_a_board_over_a_bad_line(daemon):
    matrix, drive = problem(3, cells=5)
    with BoardSimulator("--bit-errors", "5e-5", "--lost", "0.02", "--latency", "0.002", "--ppm", "100") as simulator:
        one = daemon("--driver", "board", "--driver-option", f"address={simulator.address}")
        with connect(one.address, timeout=20.0) as spu:
            assert (spu.info.driver, spu.info.cells, spu.info.clock) == ("board", CELLS, "free")
            assert spu.info.tau == pytest.approx(TAU)
            assert spu.info.rate == pytest.approx(RATE)
            with spu.session() as session:
                for _ in range(2):
                    reading = session.solve(Dense(matrix), drive, analog_time=40.0)
                    solution = torch.linalg.solve(matrix, drive)
                    assert reading.age == pytest.approx(40.0, abs=1e-3)
                    assert float((reading.value - solution).abs().max()) < codes_error(matrix, drive, drive)
                with pytest.raises(UnsupportedBlock):
                    session.program(Rows(torch.ones(1, 3)), torch.ones(3))
