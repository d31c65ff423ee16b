"""The emulator behind a board: ideal to the bit, and otherwise as wrong as the board says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from host_client import connect
from spu_link.errors import InvalidProgram, NoProgram, ReadInPast, Unsupported
from spu_link.operators import Dense, Kept, LayerRows, LinearRows, Rows
from spu_link.program import Program
from spu_server.analog.presets import TWO_NODES
from spu_server.drivers.analog import Analog
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.emulator import Emulator
from spu_server.timing import Timing
from tests.daemon import Daemon

DAMPING = 0.1


def device(seed: int = 0, **settings: str) -> Analog:
    return Analog(DriverOptions(seed=seed, settings={name.replace("__", "."): v for name, v in settings.items()}))


def factors(dtype: torch.dtype = torch.float64, seed: int = 3) -> LayerRows:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype) / 3.0

    return LayerRows([LinearRows(normal(5, 6), normal(2, 5, 4), bias=True), Rows(normal(10, 7))])


def drive(operator: LayerRows, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(operator.parameters, generator=generator, dtype=dtype)


def solution(operator: LayerRows, b: Tensor) -> Tensor:
    n = operator.parameters
    matrix = operator.curvature(torch.eye(n, dtype=torch.float64)) + DAMPING * torch.eye(n, dtype=torch.float64)
    return torch.linalg.solve(matrix, b.to(torch.float64))


def settled(board: Analog, operator: LayerRows, b: Tensor, *, at: float = 400.0, noise: float = 0.0) -> Tensor:
    board.stage(Program(operator, b, damping=DAMPING, noise=noise, start="drive"))
    board.commit(0.0)
    return board.read(at, None)


def error(board: Analog, operator: LayerRows | None = None) -> float:
    operator = operator or factors()
    b = drive(operator)
    exact = solution(operator, b)
    return float((settled(board, operator, b) - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ideal_board_reads_as_the_emulator_to_the_bit(dtype: torch.dtype) -> None:
    operator = factors(dtype)
    b = drive(operator, dtype)
    readings = []
    for driver in (Emulator(DriverOptions(seed=5)), device(seed=5)):
        seen = []
        driver.stage(Program(operator, b, damping=DAMPING, noise=0.3, start="drive"))
        driver.commit(1.0)
        driver.prepare()
        driver.open_window(0, 1.5)
        seen.append(driver.read(2.0, None))
        driver.stage(Program(operator, 2.0 * b, damping=DAMPING, noise=0.1))
        driver.commit(2.5)
        seen += [driver.read(3.0, 0), driver.read(4.0, None)]
        readings.append(seen)
    for plain, analog in zip(*readings, strict=True):
        assert analog.dtype == dtype
        assert torch.equal(plain, analog)


def test_a_board_whose_errors_are_too_small_to_see_reads_as_the_emulator() -> None:
    assert error(device(offsets__input="1e-14")) < 1e-10
    separate = device(programming__mismatch="1e-14", programming__separate="true")
    assert error(separate) < 1e-10


def test_errors_fall_with_bits() -> None:
    errors = [error(device(preset=name, thermal__temperature="0")) for name in ("4-bit", "8-bit", "paper-16-bit")]
    assert errors[0] < 0.5
    assert 8.0 < errors[0] / errors[1] < 40.0
    assert 100.0 < errors[1] / errors[2] < 1000.0


def test_readings_keep_their_dtype_and_the_device_its_reading_through_windows() -> None:
    operator = factors(torch.float32)
    b = drive(operator, torch.float32)
    board = device(preset="paper-16-bit", thermal__temperature="0")
    board.stage(Program(operator, b, damping=DAMPING, start=solution(operator, b).float()))
    board.commit(0.0)
    board.open_window(7, 10.0)
    average = board.read(20.0, 7)
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, solution(operator, b).float(), atol=2e-3, rtol=0)
    with pytest.raises(ReadInPast):
        board.read(20.0, 7)


@pytest.mark.parametrize("holds", ["factors", "rows"])
def test_mismatch_between_separate_arrays_shows_in_proportion(holds: str) -> None:
    settings = {"programming__separate": "true", "programming__holds": holds}
    errors = [error(device(programming__mismatch=size, **settings)) for size in ("1e-5", "1e-3")]
    assert 50.0 < errors[1] / errors[0] < 200.0
    assert errors[1] < 0.05


def test_dithered_roundings_leave_an_error_of_second_order() -> None:
    """With as many roundings as codes, what is left of an error ε is ε²: slope 2 over bits, against 1 without."""
    bits = np.array([4, 5, 6, 7])

    def errors(roundings: bool) -> list[float]:
        found = []
        for b in bits:
            own = {"programming__bits": str(b), "averaging__roundings": str(2**b) if roundings else "1"}
            found.append(np.mean([error(device(seed=s, **own), factors(seed=s)) for s in range(4)]))
        return found

    plain, mitigated = errors(False), errors(True)
    steps = -bits * np.log(2.0)
    assert abs(np.polyfit(steps, np.log(plain), 1)[0] - 1.0) < 0.3
    assert abs(np.polyfit(steps, np.log(mitigated), 1)[0] - 2.0) < 0.3
    assert mitigated[-1] < 0.1 * plain[-1]


def test_calibration_takes_offsets_and_gains_out_of_solutions() -> None:
    wrong = {"offsets__input": "1e-3", "offsets__output": "1e-3", "adc__mismatch": "0.01", "rails__volts": "1.0"}
    before, after = error(device(**wrong)), error(device(**wrong, calibration__readings="1"))
    assert before > 0.01
    assert after < 1e-9


def test_calibration_may_be_asked_for() -> None:
    board = device(offsets__output="1e-3")
    assert error(board) > 1e-5
    board.calibrate()
    operator = factors()
    b = drive(operator)
    torch.testing.assert_close(board.read(401.0, None), solution(operator, b), atol=1e-9, rtol=0)


def test_calibration_before_there_is_a_program_holds_for_those_that_come() -> None:
    board = device(offsets__input="1e-3", offsets__output="1e-3", adc__mismatch="0.01", rails__volts="1.0")
    board.calibrate()
    assert error(board) < 1e-9


def test_a_daemon_calibrates_the_board_when_it_opens_it() -> None:
    wrong = {"offsets.input": "1e-3", "offsets.output": "1e-3"}
    operator, b = factors(), drive(factors())
    errors = []
    for calibrate in (False, True):
        options = {"driver": "analog", "driver_option": wrong, "clock": "stepped", "calibrate": calibrate}
        with connect("inproc:", **options) as spu, spu.session() as session:
            value = session.solve(operator, b, damping=DAMPING, start="drive", analog_time=400.0).value
            errors.append(float((value - solution(operator, b)).abs().max()))
    assert errors[0] > 1e-3
    assert errors[1] < 1e-9


def test_a_board_cannot_save_its_state_and_clients_get_an_error() -> None:
    with connect("inproc:", driver="analog", clock="stepped") as spu, spu.session() as session:
        assert "state" not in spu.info.features
        session.solve(factors(), drive(factors()), damping=DAMPING, analog_time=1.0)
        with pytest.raises(Unsupported, match="driver analog can neither save nor restore its state"):
            session.save_state()
        with pytest.raises(Unsupported, match="driver analog can neither save nor restore its state"):
            session.restore_state(b"whatever")


def test_thermal_noise_has_the_variance_kt_over_c_in_volts() -> None:
    """1e-21 F make it large: κ = kT/C = 4.14 V² at 1 V a unit, with F + λ = 1 in every cell its variance."""
    n = 20000
    board = device(thermal__temperature="300", thermal__capacitance="1e-21")
    board.stage(Program(Rows(torch.zeros(1, n)), torch.zeros(n), damping=1.0, start="drive"))
    board.commit(0.0)
    variance = float(board.read(50.0, None).double().var())
    assert abs(variance / (1.380649e-23 * 300 / 1e-21) - 1.0) < 0.05  # 5 standard deviations


def test_leak_of_amplifiers_adds_to_the_damping() -> None:
    operator = factors()
    b = drive(operator)
    found = settled(device(amplifier__gain="19"), operator, b)
    n = operator.parameters
    damped = operator.curvature(torch.eye(n, dtype=torch.float64)) + (DAMPING + 0.05) * torch.eye(
        n, dtype=torch.float64
    )
    torch.testing.assert_close(found, torch.linalg.solve(damped, b))


def test_small_gradients_keep_their_digits_behind_the_ranging() -> None:
    operator = factors()
    b = drive(operator)
    board = device(preset="paper-16-bit", thermal__temperature="0")
    large, small = (
        settled(board, operator, b),
        settled(device(preset="paper-16-bit", thermal__temperature="0"), operator, 1e-7 * b),
    )
    torch.testing.assert_close(1e7 * small, large, atol=1e-9, rtol=1e-6)
    without = device(preset="paper-16-bit", dac__ranging="false", adc__ranging="false", rails__volts="inf")
    assert not settled(without, operator, 1e-7 * b).any()


def test_what_is_clipped_is_counted_where_it_happens() -> None:
    operator = factors()
    board = device(rails__volts="1.0", rails__headroom="1.0")
    settled(board, operator, drive(operator))
    assert board.report()["rail_clipped"] > 0
    board = device(dac__bits="8", dac__range="0.5", dac__ranging="false")
    settled(board, operator, drive(operator))
    assert board.report()["dac_clipped"] > 0
    board = device(adc__range="0.5")
    settled(board, operator, drive(operator))
    assert board.report()["adc_clipped"] > 0


def unstable() -> Dense:
    return Dense(torch.tensor([[1.0, 0.999], [0.999, 1.0]], dtype=torch.float64))


def test_a_board_made_unstable_by_rounding_grows_to_its_rails_and_says_so() -> None:
    """Two bits make 1.0 and 0.999 the same, mismatch makes the matrix indefinite: the state grows and is clipped."""
    found = None
    for seed in range(20):
        board = Analog(DriverOptions(seed=seed, settings={"programming.mismatch": "0.2", "rails.volts": "1.0"}))
        board.stage(Program(unstable(), torch.tensor([1.0, 0.5], dtype=torch.float64), start="drive"))
        board.commit(0.0)
        reading = board.read(300.0, None)
        if board.report()["rail_clipped"]:
            found = board, reading
            break
    assert found is not None
    board, reading = found
    scale = board.board.rails.scale(1.0, 1.0, 0.0)
    assert float((reading.abs() * scale).max()) == pytest.approx(1.0)
    with pytest.raises(OverflowError, match="unstable"):
        board.read(1e6, None)


def test_a_program_that_keeps_the_operator_is_the_same_as_a_new_one() -> None:
    operator = factors()
    b = drive(operator)
    readings = []
    for again in (operator, factors()):
        board = device(preset="8-bit", programming__mismatch="0.01")
        board.stage(Program(operator, b, damping=DAMPING, start="drive"))
        board.commit(0.0)
        board.read(1.0, None)
        board.stage(Program(again, 2.0 * b, damping=0.3))
        board.commit(2.0)
        readings.append(board.read(5.0, None))
    torch.testing.assert_close(readings[0], readings[1], atol=1e-12, rtol=1e-9)


def test_halt_discharges_and_forgets() -> None:
    board = device(preset="8-bit")
    operator = factors()
    settled(board, operator, drive(operator))
    board.halt(500.0)
    with pytest.raises(NoProgram):
        board.read(501.0, None)
    board.stage(Program(operator, drive(operator), damping=DAMPING))
    board.commit(600.0)
    assert float(board.read(600.0, None).abs().max()) == 0.0


def test_modelled_time_and_energy_add_up() -> None:
    board = device(preset="paper-16-bit")
    operator = factors()
    b = drive(operator)
    program = Program(operator, b, damping=DAMPING, start="drive")
    settled(board, operator, b, at=50.0)
    report = board.report()
    assert report["uploads"] == report["readings"] == 1.0
    assert report["upload_seconds"] == pytest.approx(board.board.timing.upload_seconds(program))
    assert report["analog_seconds"] == pytest.approx(50e-6)
    assert report["conversion_seconds"] == pytest.approx(2e-6)
    assert report["joules"] > 0.0


def test_an_upload_is_held_back_by_its_modelled_time() -> None:
    operator = factors()
    program = Program(operator, drive(operator), damping=DAMPING)
    bits = 16 * (operator.parameters + 10 * (10 + 2 * operator.parameters))
    board = device(timing__hold="true", timing__link=str(bits / 0.2), timing__arrays="paper")
    began = time.monotonic()
    board.stage(program)
    assert time.monotonic() - began >= 0.2
    with pytest.raises(ValueError, match="stepped"):
        Analog(DriverOptions(clock="stepped", settings={"timing.hold": "true"}))


def test_the_soldered_network_takes_its_own_matrix_alone_and_is_noisy() -> None:
    board = device(preset="two-node")
    assert board.capabilities.cells == 2
    assert board.capabilities.tau == TWO_NODES.tau
    with pytest.raises(InvalidProgram, match="soldered"):
        board.stage(Program(Dense(torch.eye(2)), torch.zeros(2)))
    nominal = replace(TWO_NODES, resistors=(4700.0, 4700.0, 6800.0, 10000.0))
    symmetric = 0.5 * torch.from_numpy(nominal.matrix + nominal.matrix.T)
    board.stage(Program(Dense(symmetric), torch.zeros(2, dtype=torch.float64), start="drive"))
    board.commit(0.0)
    samples = torch.stack([board.read(10.0 * (k + 1), None) for k in range(2000)])
    # Independent samples of variance σ²: their mean square is known to √(2/2000) = 3.2 %, five times that here.
    assert abs(float(samples[:, 0].square().mean()) / TWO_NODES.rms**2 - 1.0) < 0.16


def test_the_preset_of_the_breadboard_relaxes_in_the_published_92_microseconds() -> None:
    """From 100 V, compared with which its noise is nothing; after 3 time constants the fast mode is gone."""
    board = device(preset="two-node")
    symmetric = 0.5 * torch.from_numpy(TWO_NODES.matrix + TWO_NODES.matrix.T)
    start = torch.full((2,), 100.0, dtype=torch.float64)
    board.stage(Program(Dense(symmetric), torch.zeros(2, dtype=torch.float64), start=start))
    board.commit(0.0)
    early, late = (float(board.read(age, None)[0]) for age in (3.0, 5.0))
    seconds = 2.0 * TWO_NODES.tau / np.log(early / late)
    assert abs(seconds / 92e-6 - 1.0) < 0.03


def test_settings_that_do_not_exist_stop_the_device_from_opening() -> None:
    with pytest.raises(ValueError, match="no preset"):
        device(preset="paper")
    with pytest.raises(ValueError, match="PART"):
        device(bits="8")


def test_the_plain_emulator_refuses_options_that_it_would_ignore() -> None:
    with pytest.raises(ValueError, match="the driver analog has"):
        Emulator(DriverOptions(settings={"preset": "8-bit"}))


def test_a_matrix_that_the_resistors_hold_exactly_moves_as_in_the_emulator() -> None:
    matrix = Dense(factors().dense() @ factors().dense().T)
    b = torch.linspace(-1.0, 1.0, 10, dtype=torch.float64)
    readings = []
    for driver in (Emulator(DriverOptions()), device(offsets__input="1e-300")):
        driver.stage(Program(matrix, b, damping=DAMPING, noise=0.1, start="drive"))
        driver.commit(0.0)
        readings.append(driver.read(3.0, None))
    assert torch.equal(*readings)


def test_a_client_gets_what_the_board_has_counted(free_analog: str) -> None:
    for address, options in (("inproc:", {"driver": "analog", "driver_option": BOARD}), (free_analog, {})):
        with connect(address, **options) as spu:
            assert spu.report()["uploads"] == 0.0
            with spu.session() as session:
                session.solve(Rows(torch.eye(3)), torch.ones(3), damping=0.1, start="drive", analog_time=10.0)
            report = spu.report()
            assert report["uploads"] == report["readings"] == 1.0
            assert report["rail_clipped"] == 6.0  # three cells at the start, and again when they are read
            assert report["upload_seconds"] > 0.0


def test_the_emulator_reports_what_the_papers_device_would_take() -> None:
    """The board without faults reports the same, and what the cells do after the last reading is not counted."""
    operator = Rows(torch.ones(2, 3))
    program = Program(operator, torch.ones(3), damping=0.1)
    reports = []
    for driver, options in ({"emulator": {}, "analog": {"driver_option": {"preset": "ideal"}}}).items():
        with connect("inproc:", driver=driver, clock="stepped", **options) as spu, spu.session() as session:
            reading = session.solve(operator, torch.ones(3), damping=0.1, analog_time=10.0)
            session.advance(100.0)
            session.solve(Kept(reading.sequence, 3), torch.ones(3), damping=0.1, analog_time=5.0)
            reports.append({name: value for name, value in spu.report().items() if "clipped" not in name})
    assert reports[0] == reports[1]
    taken = {name: value for name, value in reports[0].items() if name.endswith("_seconds")}
    timing = Timing()
    uploads = timing.upload_seconds(program) + timing.upload_seconds(program, kept=True)
    readings = 2 * (2 * timing.conversion_seconds(3) + timing.reading_seconds(3))
    assert sum(taken.values()) == pytest.approx(uploads + readings + 15e-6)
    assert taken["analog_seconds"] == pytest.approx(15e-6)


BOARD = {"preset": "paper-16-bit", "rails.headroom": "1e-3"}


@pytest.fixture
def free_analog(daemon: Callable[..., Daemon]) -> str:
    settings = [part for item in BOARD.items() for part in ("--driver-option", "=".join(item))]
    return daemon("--driver", "analog", *settings).address


@pytest.mark.parametrize("damping", [1.0, 0.01, 0.0])
def test_the_headroom_follows_the_damping_so_that_solutions_stay_within_the_rails(damping: float) -> None:
    """Where F vanishes a solution is b/λ, or b t without damping: neither reaches the rails, and few volts are idle."""
    board = device(preset="paper-16-bit", thermal__temperature="0")
    a = torch.zeros(1, 3, dtype=torch.float64)
    b = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    board.stage(Program(Rows(a), b, damping=damping, start=torch.zeros(3, dtype=torch.float64)))
    board.commit(0.0)
    found = board.read(500.0, None)
    expected = b / damping if damping else 500.0 * b
    torch.testing.assert_close(
        found, expected * (1.0 - np.exp(-500.0 * damping) if damping else 1.0), rtol=1e-3, atol=1e-9
    )
    assert board.report()["rail_clipped"] == 0.0
