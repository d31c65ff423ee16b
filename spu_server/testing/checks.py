"""Rules for drivers: one function each, named after what a driver that passes does.

A check raises AssertionError when the driver breaks its rule, and `Skipped` where the rule does not concern it. The
statistical ones are wrong about a correct driver once in 10⁶ runs each; a device whose errors are small compared with
its noise passes them, and that of the checks is 0.04 to 0.1.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import torch

from spu_link.errors import DeviceFault, NoProgram, SpuError
from spu_link.operators import Conv2dRows, Dense, EmbeddingRows, LinearRows, Operator, Rows
from spu_link.precision import NARROW
from spu_link.program import Program
from spu_server.drivers.hosted import CheckedDriver
from spu_server.drivers.watch import ClockWatch
from spu_server.testing.bench import Bench
from spu_server.testing.statistics import FALSE_ALARM, assert_standard_normal

Check = Callable[[Bench], Awaitable[None]]

REST = 40.0
"""Age in τ at which the slowest cell of a check, of rate 1 / τ, is at rest to 10⁻¹⁷."""

OPERATORS: dict[str, Callable[[], Operator]] = {
    "dense": lambda: Dense(torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)),
    "rows": lambda: Rows(torch.tensor([[1.0, 0.5], [0.0, 1.0], [0.3, -0.2]], dtype=torch.float64)),
    "linear": lambda: LinearRows(
        torch.tensor([[1.0, 0.5]], dtype=torch.float64),
        torch.tensor([[[1.0]], [[0.5]]], dtype=torch.float64),
        bias=True,
    ),
    "conv2d": lambda: Conv2dRows(
        torch.ones(1, 1, 2, 2, dtype=torch.float64),
        torch.full((1, 1, 1, 1, 1), 0.7, dtype=torch.float64),
        kernel=(2, 2),
        bias=False,
    ),
    "embedding": lambda: EmbeddingRows(
        torch.tensor([[0, 1]]), torch.tensor([[[[1.0], [0.5]]]], dtype=torch.float64), embeddings=2
    ),
}
"""A small operator of every kind there is."""

NAMES = {*OPERATORS, *NARROW.values(), "window", "state", "kept"}
"""Features that mean something."""

CHECKS: list[Check] = []


class Skipped(Exception):
    """The rule does not concern this driver."""


def check(function: Check) -> Check:
    """A function of the suite."""
    CHECKS.append(function)
    return function


async def _assert_refused(call: Awaitable[object], what: str, error: type[SpuError] = SpuError) -> None:
    """Require that the call is refused with an error that shows a client what is wrong, which is no fault."""
    try:
        await call
    except DeviceFault as fault:
        raise AssertionError(f"{what} is a fault instead of a refusal: {fault.message}") from fault
    except error:
        return
    except SpuError as other:
        raise AssertionError(f"{what} is refused as {type(other).__name__}; expected {error.__name__}") from other
    raise AssertionError(f"{what} is not refused")


@check
async def states_its_capabilities(bench: Bench) -> None:
    """Name, cells, bytes, features and times are what they must be, and the same whenever asked."""
    capabilities = bench.capabilities
    assert capabilities.name == bench.name, f"it calls itself {capabilities.name!r}; its entry point is {bench.name!r}"
    assert capabilities.cells >= 1, f"it states {capabilities.cells} cells"
    assert capabilities.max_bytes >= 1, f"it states {capabilities.max_bytes} bytes"
    unknown = set(capabilities.features) - NAMES
    assert not unknown, f"it states features that mean nothing: {', '.join(sorted(unknown))}"
    assert set(capabilities.features) & set(OPERATORS), "it states no kind of operator that it takes"
    tau = capabilities.tau
    assert tau is None or (math.isfinite(tau) and tau > 0), f"it states a time constant of {tau} s"


@check
async def refuses_to_read_or_commit_without_a_program(bench: Bench) -> None:
    """Before the first program there is nothing to read and nothing that could take effect."""
    await _assert_refused(bench.port.read(bench.later(1.0), None), "a reading before the first program", NoProgram)
    await _assert_refused(
        bench.port.call(CheckedDriver.commit, bench.later(1.0)), "a commit with nothing staged", NoProgram
    )


@check
async def starts_where_it_should(bench: Bench) -> None:
    """A start tensor, the drive, and what the cells hold."""
    law = bench.law()
    (one,) = await bench.run(law.program(), [0.0])
    bench.assert_close(one.value, law.start, "the state at a start tensor")
    (one,) = await bench.run(law.program(start="drive"), [0.0])
    bench.assert_close(one.value, law.drive, "the state at the drive")
    await bench.fresh()
    (one,) = await bench.run(law.program(start="keep"), [REST])
    (one,) = await bench.run(law.program(start="keep"), [0.0])
    bench.assert_close(one.value, law.drive / law.rates, "the state that was kept")


@check
async def follows_the_law_in_time(bench: Bench) -> None:
    """Readings scheduled with a program lie on exponentials with the rates of the program: the unit of time is τ."""
    law = bench.law()
    for reading in await bench.run(law.program(), [0.0, 0.1, 0.5, 1.0, 3.0]):
        bench.assert_close(reading.value, law.mean(reading.time), f"the state at age {reading.time:g} τ")


@check
async def reads_at_the_times_it_says(bench: Bench) -> None:
    """Times of readings scheduled with the program are those asked for, and later calls are never read earlier."""
    ages = [0.25, 0.5, 0.5, 2.0]
    taken = await bench.run(bench.law().program(), ages)
    for age, one in zip(ages, taken, strict=True):
        allowed = bench.tolerance * max(1.0, age) + 1e-9 * bench.later(0.0)
        assert abs(one.time - age) <= allowed, f"asked for age {age:g} τ, it read at {one.time:g} τ"
    times = [reading.time for reading in taken]
    assert times == sorted(times), f"readings one after the other were taken at {times}"


@check
async def gives_readings_in_the_dtype_of_the_drive(bench: Bench) -> None:
    """float32 and float64."""
    law = bench.law()
    for dtype in (torch.float32, torch.float64):
        (one,) = await bench.run(law.program(dtype=dtype), [0.5])
        assert one.value.dtype == dtype, f"a program in {dtype} is read in {one.value.dtype}"
        assert one.value.shape == law.drive.shape, f"{len(law.drive)} cells are read in shape {tuple(one.value.shape)}"


@check
async def solves_with_every_kind_of_operator_it_states(bench: Bench) -> None:
    """(F + λI) x = b at rest, for each."""
    for kind in sorted(set(bench.capabilities.features) & set(OPERATORS)):
        operator = OPERATORS[kind]()
        n = operator.parameters
        if n > bench.capabilities.cells:
            continue
        held = operator.dense()
        curvature = held if isinstance(operator, Dense) else held.T @ held
        drive = torch.linspace(-1.0, 1.0, n, dtype=torch.float64)
        (one,) = await bench.run(Program(operator, drive, damping=1.0, start="drive"), [REST])
        solution = torch.linalg.solve(curvature + torch.eye(n, dtype=torch.float64), drive)
        bench.assert_close(one.value, solution, f"the solution with a {kind} operator")


@check
async def refuses_the_operators_it_does_not_state(bench: Bench) -> None:
    """With an error that says so, and goes on with what it did."""
    law = bench.law()
    await bench.run(law.program(), [REST])
    for kind in sorted(set(OPERATORS) - set(bench.capabilities.features)):
        operator = OPERATORS[kind]()
        drive = torch.ones(operator.parameters, dtype=torch.float64)
        await _assert_refused(bench.stage(Program(operator, drive, damping=1.0)), f"a {kind} operator")
    reading = await bench.port.read(bench.later(1.0), None)
    bench.assert_close(reading.value, law.drive / law.rates, "the state after refusals")


@check
async def goes_on_under_the_old_program_until_the_commit(bench: Bench) -> None:
    """Staging changes nothing; what was staged last takes effect."""
    law = bench.law()
    await bench.run(law.program(), [REST])
    for factor in (7.0, 2.0):
        await bench.stage(Program(Dense(torch.diag(law.rates)), factor * law.drive, start=factor * law.drive))
        reading = await bench.port.read(bench.later(1.0), None)
        bench.assert_close(reading.value, law.drive / law.rates, "the state while another program is staged")
    at = bench.later(1.0)
    await bench.port.call(CheckedDriver.commit, at)
    reading = await bench.port.read(at, None)
    bench.later(max(0.0, reading.time - at))
    expected = 2.0 * (
        law.drive / law.rates + (law.drive - law.drive / law.rates) * torch.exp(-law.rates * (reading.time - at))
    )
    bench.assert_close(reading.value, expected, "the state under the program staged last")


@check
async def averages_over_windows(bench: Bench) -> None:
    """Several at once, each the average of the path since it began; reading one closes it."""
    law = bench.law()
    if "window" not in bench.capabilities.features:
        await bench.run(law.program(), [0.5])
        await _assert_refused(
            bench.port.call(CheckedDriver.open_window, 1, bench.later(1.0)), "a window, which it does not state,"
        )
        raise Skipped("it takes no averages, and says so")
    await bench.stage(law.program())
    at = bench.later(1.0)
    await bench.port.call(CheckedDriver.commit, at)
    await bench.port.call(CheckedDriver.open_window, 1, at + 0.5)
    await bench.port.call(CheckedDriver.open_window, 2, at + 1.0)
    await bench.port.call(CheckedDriver.open_window, 3, at + 1.0)
    for number, begin, end in ((1, 0.5, 1.5), (2, 1.0, 3.0)):
        average = await bench.port.read(at + end, number)
        bench.assert_close(average.value, law.average(begin, end), f"the average from {begin:g} to {end:g} τ")
    await bench.port.call(CheckedDriver.close_window, 3)
    await bench.port.call(CheckedDriver.close_window, 3)
    bench.later(3.0)
    await _assert_refused(bench.port.read(bench.later(1.0), 1), "a second reading of a window")


HALTS = 5
"""Halts of which one has to be in time: on a busy host, device and driver may each wait for a processor."""


@check
async def halts_at_once_and_discharges_the_cells(bench: Bench) -> None:
    """Programs are gone, staged too; the cells are at 0; and it takes no longer than stated."""
    law = bench.law()
    allowed = bench.capabilities.halt_seconds
    for staged in (False, True):
        for halts in range(1, HALTS + 1):
            await bench.run(law.program(), [1.0])
            if staged:
                await bench.stage(law.program())
            begin = time.monotonic()
            await bench.port.halt(bench.later(1.0))
            took = time.monotonic() - begin
            if took <= allowed:
                break
            assert halts < HALTS, f"{halts} halts took too long, the last one {took:.3f} s; {allowed:.3f} s is stated"
        await _assert_refused(bench.port.read(bench.later(1.0), None), "a reading after a halt", NoProgram)
        await _assert_refused(
            bench.port.call(CheckedDriver.commit, bench.later(1.0)), "a commit after a halt", NoProgram
        )
    (one,) = await bench.run(law.program(start="keep"), [0.0])
    bench.assert_close(one.value, torch.zeros_like(law.drive), "the state after a halt")
    await bench.port.halt(bench.later(1.0))
    await bench.port.halt(bench.later(1.0))


@check
async def has_a_clock_that_can_be_believed(bench: Bench) -> None:
    """Over half a second, within its tolerance and the time that asking takes."""
    watch = ClockWatch(bench.capabilities.clock_tolerance)
    for _ in range(6):
        before = time.monotonic()
        shown = await bench.port.call(CheckedDriver.clock)
        if shown is None:
            raise Skipped("it has no clock of its own")
        wrong = watch.compare(before, shown, time.monotonic())
        assert not wrong, wrong
        await asyncio.sleep(0.1)


@check
async def finds_nothing_wrong_with_itself(bench: Bench) -> None:
    """Self-test and calibration of an idle device."""
    problem = await bench.port.call(CheckedDriver.self_test)
    assert isinstance(problem, str), f"its self-test returns {problem!r} instead of words"
    assert not problem, f"its self-test found: {problem}"
    await bench.port.call(CheckedDriver.calibrate)


@check
async def is_at_rest_where_and_as_widely_as_it_should_be(bench: Bench) -> None:
    """Stationarity: at rest, cells are normal around b/r with variance κ₀/r, uncorrelated between cells and in time."""
    law = bench.law(noise=0.01)
    samples = []
    for _ in range(15):
        ages = [REST / 2 + 10.0 * k for k in range(10)]
        samples += [reading.value.numpy() for reading in await bench.run(law.program(), ages)]
    mean, deviation = law.drive / law.rates, (law.noise / law.rates).sqrt()
    assert_standard_normal(((np.stack(samples) - mean.numpy()) / deviation.numpy()), FALSE_ALARM)


@check
async def relaxes_with_the_time_constant_it_should_have(bench: Bench) -> None:
    """With noise: from one reading to the next, 0.1 τ later, cells decay and spread as rate r makes them."""
    law = bench.law(noise=0.01)
    z = []
    for _ in range(25):
        before, age = law.start, 0.0
        for reading in await bench.run(law.program(), [0.1 * (k + 1) for k in range(10)]):
            step = replace(law, start=before)
            z.append(
                ((reading.value - step.mean(reading.time - age)) / step.variance(reading.time - age).sqrt()).numpy()
            )
            before, age = reading.value, reading.time
    assert_standard_normal(np.stack(z), FALSE_ALARM)


@check
async def can_be_closed_and_opened_again(bench: Bench) -> None:
    """And then it works."""
    await bench.reopen()
    law = bench.law()
    (one,) = await bench.run(law.program(), [1.0])
    bench.assert_close(one.value, law.mean(one.time), "the state after it was opened again")
