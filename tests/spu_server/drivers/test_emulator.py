"""The emulator, event by event."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from torch import Tensor

from spu_link.errors import NoProgram, ReadInPast
from spu_link.operators import Dense, Operator, Rows
from spu_link.program import Program
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.emulator import Emulator
from spu_server.dynamics import Transition
from spu_server.dynamics.transition import Step
from tests.profiles import examples
from tests.spu_server.dynamics.law import law_by_exponentials
from tests.statistics import assert_standard_normal, whiten

N = 4


def program(n: int = N, seed: int = 0, **options: object) -> Program:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, n), (n,)))
    return Program(Rows(a), b, **{"damping": 0.2, **options})


def emulator(seed: int = 0) -> Emulator:
    return Emulator(DriverOptions(seed=seed))


def load(device: Emulator, one: Program, at: float = 0.0) -> Program:
    device.stage(one)
    device.commit(at)
    return one


def curvature(one: Program) -> np.ndarray:
    return one.operator.curvature(torch.eye(one.cells).double()).numpy() + one.damping * np.eye(one.cells)


def moved(one: Program, x: Tensor, duration: float) -> Tensor:
    """The state after `duration` without noise."""
    f, b = curvature(one), one.drive.double().numpy()
    solution = np.linalg.solve(f, b)
    return torch.from_numpy(solution + expm(-f * duration) @ (x.double().numpy() - solution))


def average(one: Program, x: Tensor, duration: float) -> Tensor:
    """The average of the state over `duration` without noise."""
    law = law_by_exponentials(curvature(one), one.drive.double().numpy(), 0.0, duration)
    return torch.from_numpy((law.offset + law.start @ x.double().numpy())[one.cells :] / duration)


@pytest.mark.parametrize(
    "start", ["keep", "drive", torch.arange(N, dtype=torch.float32)], ids=["keep", "drive", "tensor"]
)
def test_cells_follow_the_program_from_its_start_and_are_discharged_at_first(start: str | Tensor) -> None:
    device = emulator()
    one = load(device, program(start=start), 3.0)
    x = start if isinstance(start, Tensor) else {"keep": torch.zeros(N), "drive": one.drive}[start]
    torch.testing.assert_close(device.read(3.0, None), x.double())
    torch.testing.assert_close(device.read(5.5, None), moved(one, x, 2.5))


def test_keep_goes_on_under_the_old_program_until_the_new_one_takes_effect() -> None:
    device = emulator()
    first = load(device, program(start="drive"))
    device.stage(second := program(seed=1))
    x = moved(first, first.drive, 1.0)
    torch.testing.assert_close(device.read(1.0, None), x)
    device.commit(1.7)
    x = moved(first, x, 0.7)
    torch.testing.assert_close(device.read(1.7, None), x)
    torch.testing.assert_close(device.read(2.0, None), moved(second, x, 0.3))


def test_new_cells_start_at_zero_and_surplus_ones_are_discharged() -> None:
    device = emulator()
    load(device, program(start=torch.ones(N)))
    load(device, program(N + 2))
    assert device.read(0.0, None).tolist() == [1.0] * N + [0.0] * 2
    load(device, program(2))
    load(device, program(N))
    assert device.read(0.0, None).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_the_last_program_staged_is_the_one_committed() -> None:
    device = emulator()
    device.stage(program(seed=1))
    last = load(device, program(seed=2, start="drive"))
    torch.testing.assert_close(device.read(0.0, None), last.drive)


def test_readings_do_not_depend_on_how_often_the_device_was_read_before() -> None:
    often, once = emulator(), emulator()
    for device in (often, once):
        load(device, program(start="drive"))
    for at in np.linspace(0.0, 3.0, 13):
        reading = often.read(at, None)
    torch.testing.assert_close(reading, once.read(3.0, None), rtol=1e-12, atol=1e-13)


def test_reading_twice_at_one_time_gives_the_same_state_in_memory_of_its_own() -> None:
    device = emulator()
    load(device, program(noise=0.1, start="drive"))
    for at in (0.0, 1.0):
        first = device.read(at, None)
        kept = first.clone()
        first.zero_()
        assert torch.equal(device.read(at, None), kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_readings_come_in_the_dtype_of_the_drive(dtype: torch.dtype) -> None:
    device = emulator()
    load(device, Program(Rows(torch.ones(1, 3)), torch.ones(3, dtype=dtype)))
    device.open_window(0, 0.0)
    assert device.read(0.0, None).dtype == device.read(1.0, None).dtype == device.read(2.0, 0).dtype == dtype


def test_the_state_outlives_the_tensors_of_a_replaced_program() -> None:
    device = emulator()
    one = load(device, program(start="drive"))
    expected = one.drive.clone()
    load(device, program(seed=1))
    one.drive.zero_()
    assert torch.equal(device.read(0.0, None), expected)


def test_a_window_is_the_average_since_its_start() -> None:
    device = emulator()
    one = load(device, program(start="drive"))
    device.open_window(7, 1.0)
    device.read(1.9, None)
    torch.testing.assert_close(device.read(3.0, 7), average(one, moved(one, one.drive, 1.0), 2.0))


def test_several_windows_at_once() -> None:
    device = emulator()
    one = load(device, program(start="drive"))
    device.open_window(0, 0.0)
    device.open_window(1, 0.5)
    device.open_window(2, 0.5)
    torch.testing.assert_close(device.read(1.0, 1), average(one, moved(one, one.drive, 0.5), 0.5))
    torch.testing.assert_close(device.read(2.0, 0), average(one, one.drive, 2.0))
    torch.testing.assert_close(device.read(2.0, 2), average(one, moved(one, one.drive, 0.5), 1.5))


@pytest.mark.parametrize("start", ["keep", "drive"])
def test_a_window_survives_a_change_of_program(start: str) -> None:
    device = emulator()
    first = load(device, program(start="drive"))
    device.open_window(0, 1.0)
    second = load(device, program(seed=1, start=start), 2.0)
    x = moved(first, first.drive, 1.0)
    y = second.drive if start == "drive" else moved(first, x, 1.0)
    expected = (average(first, x, 1.0) + 3.0 * average(second, y, 3.0)) / 4.0
    torch.testing.assert_close(device.read(5.0, 0), expected)


def test_a_window_over_no_time_is_the_state() -> None:
    device = emulator()
    load(device, program(start="drive"))
    device.open_window(0, 1.0)
    assert torch.equal(device.read(1.0, 0), device.read(1.0, None))


def test_a_window_ends_with_a_change_of_the_number_of_cells() -> None:
    device = emulator()
    load(device, program())
    device.open_window(0, 1.0)
    load(device, program(N + 1), 2.0)
    load(device, program(N), 3.0)
    with pytest.raises(ReadInPast, match="number of cells"):
        device.read(4.0, 0)
    assert device.read(4.0, None).shape == (N,)


def test_a_window_read_or_closed_is_gone() -> None:
    device = emulator()
    load(device, program())
    device.open_window(0, 0.0)
    device.open_window(1, 0.0)
    device.read(1.0, 0)
    device.close_window(1)
    device.close_window(1)
    for window in (0, 1, 2):
        with pytest.raises(ReadInPast, match="not open"):
            device.read(1.0, window)


def test_nothing_can_be_read_before_the_first_program_or_after_a_halt() -> None:
    device = emulator()
    with pytest.raises(NoProgram):
        device.read(0.0, None)
    with pytest.raises(NoProgram):
        device.open_window(0, 0.0)
    with pytest.raises(NoProgram):
        device.commit(0.0)
    load(device, program(start="drive"))
    device.stage(program())
    device.halt(2.0)
    with pytest.raises(NoProgram):
        device.read(2.0, None)
    with pytest.raises(NoProgram):
        device.commit(2.0)
    load(device, program(), 3.0)
    assert not device.read(3.0, None).any()


@pytest.mark.parametrize("start", ["keep", "drive"])
def test_device_time_does_not_go_back(start: str) -> None:
    device = emulator()
    load(device, program())
    device.read(2.0, None)
    device.stage(program(start=start))
    for act in (lambda: device.read(1.0, None), lambda: device.open_window(0, 1.0), lambda: device.commit(1.0)):
        with pytest.raises(ReadInPast):
            act()
    device.halt(1.0)
    assert device.time == 2.0


def test_a_replaced_start_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = emulator()
    load(device, program(noise=0.1))
    monkeypatch.setattr(Transition, "step", lambda *_, **__: pytest.fail("the old program was evolved"))
    load(device, program(start="drive"), 10.0)
    load(device, program(start=torch.ones(N)), 20.0)
    assert device.time == 20.0


def events(seed: int) -> list[Tensor]:
    device = emulator(seed)
    load(device, program(noise=0.1))
    device.prepare()
    device.open_window(0, 0.5)
    readings = [device.read(1.0, None)]
    load(device, program(seed=1, noise=0.2), 1.5)
    return [*readings, device.read(2.0, 0), device.read(2.0, None)]


def test_a_run_is_its_events_and_its_seed() -> None:
    assert all(torch.equal(one, other) for one, other in zip(events(3), events(3), strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(events(3), events(4), strict=True))


def test_without_noise_the_seed_does_not_matter() -> None:
    readings = [load(d := emulator(seed), program(start="drive")) and d.read(2.0, None) for seed in (0, 1)]
    assert torch.equal(*readings)


def test_noise_is_drawn_neither_without_noise_nor_without_time() -> None:
    device = emulator()
    load(device, program(start="drive"))
    device.read(3.0, None)
    load(device, program(noise=0.1), 3.0)
    device.read(3.0, None)
    assert torch.equal(device.save(3.0).tensors["generator"], torch.Generator().manual_seed(0).get_state())


def test_preparing_ahead_changes_no_bit() -> None:
    readings = []
    for ahead in (True, False):
        device = emulator()
        device.prepare()
        load(device, program(noise=0.1))
        if ahead:
            device.prepare()
        readings.append(device.read(1.0, None))
    assert torch.equal(*readings)


def test_noisy_states_and_windows_have_their_joint_law() -> None:
    """Copies of a problem of two cells side by side; false alarms: 1e-6, fixed seed."""
    copies, f, b, noise = 2000, np.array([[0.7, 0.3], [0.3, 0.2]]), np.array([1.0, -2.0]), 0.3
    matrix = torch.block_diag(*[torch.from_numpy(f)] * 50)
    samples = []
    device = emulator(seed=5)
    for k in range(copies // 50):
        load(device, Program(Dense(matrix), np.tile(b, 50), noise=noise, start="drive"), 10.0 * k)
        device.open_window(0, 10.0 * k)
        device.read(10.0 * k + 0.4, None)
        mean = device.read(10.0 * k + 1.5, 0).view(50, 2)
        samples.append(torch.cat([device.read(10.0 * k + 1.5, None).view(50, 2), 1.5 * mean], dim=1))
    law = law_by_exponentials(f, b, noise, 1.5)
    assert_standard_normal(whiten(torch.cat(samples).numpy(), law.offset + law.start @ b, law.covariance))


def test_capabilities_follow_the_options() -> None:
    device = Emulator(DriverOptions(cells=10, max_bytes=1000))
    capabilities = device.capabilities
    assert (capabilities.name, capabilities.cells, capabilities.max_bytes) == ("emulator", 10, 1000)
    kinds, precisions = {"dense", "rows", "linear", "conv2d", "embedding"}, {"float16", "bfloat16", "int16"}
    assert set(capabilities.features) == kinds | precisions | {"window", "state"}
    device.close()


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["program", "keep", "read", "window", "at the reading", "save"]), st.floats(0.0, 9.0, width=16)
    ),
    min_size=2,
    max_size=12,
)


@pytest.mark.parametrize("rows", [5, 300])
@settings(max_examples=examples(25))
@given(events=EVENTS, readings=st.lists(st.tuples(st.floats(0.0, 9.0, width=16), st.just(0.0)), max_size=2))
def test_no_bit_depends_on_whether_a_step_was_worked_out_ahead(
    rows: int, events: list[tuple[str, float]], readings: list[tuple[float, float]]
) -> None:
    """With noise: whatever happens between a program and the reading that was due under it."""
    a = torch.randn(rows, 400, generator=torch.Generator().manual_seed(0)).double() / 20

    def run(prepared: bool) -> list[torch.Tensor]:
        emulator, values, at, due, windows = Emulator(DriverOptions(seed=1)), [], 0.0, 0.0, 0
        operator: Operator = Rows(a)
        for number, (kind, duration) in enumerate([("program", 1.0), *events]):
            if kind in ("program", "keep"):
                at += duration
                operator = Rows(a * (1 + number)) if kind == "program" else operator
                start = "drive" if number % 2 == 0 else "keep"
                program = Program(operator, torch.ones(400).double() * number, damping=0.1, noise=1e-3, start=start)
                emulator.stage(program)
                emulator.schedule(readings)
                emulator.commit(at)
                due = min((at + after for after, _ in readings), default=at)
                if prepared:
                    emulator.prepare()
            elif kind == "save":
                values.append(emulator.save(at).tensors["generator"])
            elif kind == "window":
                windows += 1
                emulator.open_window(windows, at)
                at += duration
                values.append(emulator.read(at, windows))
            else:
                at = max(at, due) if kind == "at the reading" else at + duration
                values.append(emulator.read(at, None))
        return values

    for one, other in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_step_to_a_reading_that_is_due_is_not_taken_again_at_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    step = Transition.step

    def counted(transition: Transition, state: Tensor | None, duration: float, *args: Any, **options: Any) -> Step:
        taken.append(duration)
        return step(transition, state, duration, *args, **options)

    monkeypatch.setattr(Transition, "step", counted)
    one = emulator()
    one.stage(program(start="drive"))
    one.schedule([(5.0, 0.0), (7.0, 0.0)])
    one.commit(1.0)
    one.prepare()
    assert taken == [5.0]
    one.read(6.0, None)
    assert taken == [5.0]
    one.read(8.0, None)
    assert taken == [5.0, 2.0]
