"""Errors of channels: fixed, drifting, and as calibration leaves them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spu_server.analog.cells import BOLTZMANN, Amplifier, GainDrift, Offsets, Thermal
from spu_server.analog.channels import Channels
from spu_server.analog.converters import AnalogToDigital, DigitalToAnalog
from spu_server.analog.hardware import AnalogBoard, Calibration, Rails

CELLS = 3000
ERRORS = AnalogBoard(
    adc=AnalogToDigital(mismatch=0.02, range=1.0),
    offsets=Offsets(input=3e-3, output=5e-3),
    rails=Rails(volts=1.0),
)


def channels(board: AnalogBoard, cells: int = CELLS) -> Channels:
    made = Channels(board, 11, torch.Generator().manual_seed(1))
    made.use(cells, 0.0)
    return made


def volts(level: float, cells: int = CELLS) -> torch.Tensor:
    return torch.full((cells,), level, dtype=torch.float64)


def through(made: Channels, level: float) -> torch.Tensor:
    """Return the reading of a cell with F + λ = 1 for a drive."""
    return made.read(made.convert_drive(volts(level), 0.5) + made.offset(CELLS, 0.0), 0.0)


def test_errors_have_their_size_and_belong_to_the_channel() -> None:
    made = channels(ERRORS)
    assert abs(float(made.offset(CELLS, 0.0).std()) / 3e-3 - 1.0) < 0.1
    assert abs(float(made.read(volts(0.0), 0.0).std()) / 5e-3 - 1.0) < 0.1
    few = channels(ERRORS, 10)
    assert torch.equal(few.offset(10, 0.0), made.offset(10, 0.0))
    few.use(CELLS, 0.0)
    assert torch.equal(few.offset(CELLS, 0.0), made.offset(CELLS, 0.0))
    assert torch.equal(few.read(volts(0.3), 0.0), made.read(volts(0.3), 0.0))


@pytest.mark.parametrize("level", [0.0, 0.2, -0.7])
def test_calibration_removes_offsets_and_gains(level: float) -> None:
    before = float((through(channels(ERRORS), level) - level).std())
    after = float((through(channels(replace(ERRORS, calibration=Calibration(readings=1))), level) - level).std())
    assert before > 5e-3
    assert after < 1e-12


def test_calibration_is_as_good_as_its_readings() -> None:
    """Offsets are known to noise/√readings: four times fewer errors from sixteen times the readings."""
    noisy = replace(ERRORS, adc=replace(ERRORS.adc, noise=1e-3, ranging=False))
    residual = []
    for readings in (4, 64):
        made = channels(replace(noisy, calibration=Calibration(readings=readings)))
        quiet = torch.stack([through(made, 0.0) for _ in range(200)]).mean(0)
        residual.append(float(quiet.std()))
    assert 3.0 < residual[0] / residual[1] < 5.0


def test_calibration_is_repeated_when_it_is_due() -> None:
    board = replace(ERRORS, drift=GainDrift(rate=1e-3), calibration=Calibration(readings=1, every=100.0))
    made = channels(board)
    made.read(volts(0.5), 90.0)
    made.use(CELLS, 90.0)  # too early for another one
    drifted = float((through(made, 0.5) - 0.5).std())
    made.use(CELLS, 110.0)
    fresh = float((through(made, 0.5) - 0.5).std())
    assert drifted > 0.5 * 1e-3 * np.sqrt(90.0) * 0.9
    assert fresh < 1e-12


def test_gains_walk_with_the_root_of_time() -> None:
    made = channels(AnalogBoard(drift=GainDrift(rate=1e-3)))
    spread = [float((made.read(volts(1.0), t) - 1.0).std()) for t in (1.0, 100.0)]
    assert abs(spread[0] / 1e-3 - 1.0) < 0.1
    assert abs(spread[1] / 1e-2 - 1.0) < 0.1


def test_flicker_has_as_much_power_in_each_decade() -> None:
    """Paths of 2¹² samples of 200 channels: periodogram times frequency is flat between the correlation times."""
    offsets = Offsets(flicker=1.0, slowest=1e4, fastest=0.1)
    made = Channels(AnalogBoard(offsets=offsets), 0, torch.Generator().manual_seed(2))
    n, interval = 200, 0.05
    made.use(n, 0.0)
    path = torch.stack([made.offset(n, k * interval) for k in range(1 << 12)]).numpy()
    window = np.hanning(len(path))[:, None]
    power = (np.abs(np.fft.rfft(path * window, axis=0)) ** 2).mean(1) * 2 * interval / (window**2).sum()
    frequency = np.fft.rfftfreq(len(path), interval)
    for low in (0.02, 0.06, 0.2):
        band = (frequency >= low) & (frequency < 2 * low)
        in_decade = (power * frequency)[band].mean() * np.log(10.0)
        assert abs(in_decade - 1.0) < 0.15, f"from {low} Hz: {in_decade:.3f} V² in a decade"


def test_rails_clip_and_count() -> None:
    made = channels(AnalogBoard(rails=Rails(volts=1.0)))
    seen = made.read(torch.tensor([0.5, 1.5, -2.0], dtype=torch.float64), 0.0)
    assert seen.tolist() == [0.5, 1.0, -1.0]
    assert made.clipped["rail"] == 2


def test_thermal_noise_of_one_nanofarad_is_two_microvolts() -> None:
    assert abs(Thermal(temperature=300.0, capacitance=1e-9).variance ** 0.5 / 2.035e-6 - 1.0) < 1e-3
    assert Thermal().variance == 0.0
    assert BOLTZMANN == 1.380649e-23


def test_the_leak_of_an_amplifier_falls_with_its_gain() -> None:
    assert Amplifier().leak == 0.0
    assert Amplifier(gain=999.0, conductance=2.0).leak == 2e-3


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_calibration_does_not_take_the_rounding_of_its_converters_for_errors(bits: int) -> None:
    """Perfect channels behind coarse converters stay perfect: nothing is corrected but by thermal noise."""
    board = AnalogBoard(
        adc=AnalogToDigital(bits=bits, range=1.0),
        dac=DigitalToAnalog(bits=bits, range=1.0),
        rails=Rails(volts=1.0),
        thermal=Thermal(temperature=300.0),
        calibration=Calibration(readings=16),
    )
    made, perfect = channels(board), channels(replace(board, calibration=Calibration()))
    levels = torch.linspace(-0.9, 0.9, CELLS, dtype=torch.float64)
    torch.testing.assert_close(made.read(levels, 0.0), perfect.read(levels, 0.0), rtol=1e-5, atol=1e-9)
    corrected = (made.convert_drive(levels, 0.5) - perfect.convert_drive(levels, 0.5)).mean()
    assert abs(float(corrected)) < 5e-5
