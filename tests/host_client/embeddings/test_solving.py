"""Through devices in this process, against the digital equivalents."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
import torch

from host_client import aio, connect
from host_client.blocking.thread import wait
from host_client.embeddings import Block, Embedding, Kronecker, SampleSpace, solve_exactly
from spu_link.errors import CapacityExceeded, DeviceHalted, InvalidProgram, NoProgram, OperatorGone, ReadInPast
from spu_link.operators import Kept, Operator
from spu_link.program import Program, ReadPlan, Schedule
from tests.host_client.embeddings.operators import factors, relaxed, rows, vector

LAYERS = rows(4, 6, 5)
FACTORS = factors((2, 5), (4, 3))
EVERY = [(SampleSpace(), LAYERS, 4, 1), (Block(), LAYERS, 6, 2), (Kronecker(), FACTORS, 5, 10)]
LONG = 3000.0
DAMPING = 0.1
names = [embedding.name for embedding, *_ in EVERY]


@pytest.mark.parametrize("clock", ["stepped", "free"])
@pytest.mark.parametrize(("embedding", "operator", "cells", "programs"), EVERY, ids=names)
def test_a_device_with_just_enough_cells_gives_the_digital_equivalent(
    embedding: Embedding, operator: Operator, cells: int, programs: int, clock: str
) -> None:
    drive = vector(operator.parameters)
    with connect("inproc:", clock=clock, cells=cells, embedding=embedding) as spu, spu.session() as session:
        reading = session.solve(operator, drive, analog_time=LONG, damping=DAMPING)
        torch.testing.assert_close(reading.value, solve_exactly(embedding, operator, drive, DAMPING), rtol=1e-9, atol=0)
        assert reading.value.dtype == drive.dtype
        assert reading.age == pytest.approx(LONG, rel=1e-9)  # a difference of two times of the device
        assert reading.sequence == programs
        assert embedding.programs(operator) == programs
        if clock == "stepped":
            assert reading.time == LONG * programs
        single = session.solve(operator, drive.float(), analog_time=LONG, damping=DAMPING)
        torch.testing.assert_close(single.value, reading.value.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clock", ["stepped", "free"])
@pytest.mark.parametrize(("embedding", "operator", "cells", "programs"), EVERY[1:], ids=names[1:])
def test_devices_side_by_side_share_the_programs(
    embedding: Embedding, operator: Operator, cells: int, programs: int, clock: str
) -> None:
    drive = vector(operator.parameters)
    with (
        connect(["inproc:"] * 3, clock=clock, cells=cells, embedding=embedding) as spu,
        spu.session() as session,
    ):
        reading = session.solve(operator, drive, analog_time=LONG, damping=DAMPING)
        torch.testing.assert_close(reading.value, solve_exactly(embedding, operator, drive, DAMPING), rtol=1e-9, atol=0)
        assert reading.sequence == sum(-(-part // 3) for part in ([2] if programs == 2 else [5, 5]))
        if clock == "stepped":
            assert reading.time == LONG * reading.sequence
            assert session.advance(5.0) == reading.time + 5.0


def test_at_a_finite_time_sample_space_gives_what_its_cells_had_come_to() -> None:
    a, drive, time = LAYERS.dense(), vector(11), 3.0
    gram = a @ a.T + DAMPING * torch.eye(4, dtype=torch.float64)
    with connect("inproc:", clock="stepped", embedding="sample") as spu, spu.session() as session:
        left = drive
        for start in ("drive", "keep", vector(11, 7)):
            x0 = start if isinstance(start, torch.Tensor) else {"drive": drive, "keep": left}[start]
            found = session.solve(LAYERS, drive, analog_time=time, damping=DAMPING, start=start)
            w = relaxed(gram, a @ drive, a @ x0, time)
            torch.testing.assert_close(found.value, (drive - a.T @ w) / DAMPING, rtol=1e-9, atol=1e-9)
            left = SampleSpace().state_after(x0, found.value, DAMPING * time)


@pytest.mark.parametrize("devices", [1, 2])
def test_blocks_go_on_from_what_was_read_of_them(devices: int) -> None:
    drive, time = vector(11), 2.0
    with connect(["inproc:"] * devices, clock="stepped", embedding="block") as spu, spu.session() as session:
        state = drive
        for start in ("keep", "keep", "drive"):
            found = session.solve(LAYERS, drive, analog_time=time, damping=DAMPING, start=start).value
            expected = []
            for layer, b, x0 in zip(
                LAYERS.layers, drive.split([6, 5]), (drive if start == "drive" else state).split([6, 5]), strict=True
            ):
                a = layer.dense()
                expected.append(relaxed(a.T @ a + DAMPING * torch.eye(len(b), dtype=torch.float64), b, x0, time))
            torch.testing.assert_close(found, torch.cat(expected), rtol=1e-9, atol=1e-9)
            state = found


def test_kronecker_factors_start_from_the_images_of_a_start() -> None:
    operator, drive = factors((3, 3)), vector(9)
    exact = solve_exactly(Kronecker(), operator, drive, DAMPING)
    with connect("inproc:", clock="stepped", embedding="kronecker") as spu, spu.session() as session:
        at_once = session.solve(operator, drive, analog_time=0.0, damping=DAMPING, start=vector(9, 3))
        torch.testing.assert_close(at_once.value, vector(9, 3))
        settled = session.solve(operator, drive, analog_time=0.5, damping=DAMPING, start=exact)
        torch.testing.assert_close(settled.value, exact)


@pytest.mark.parametrize(("embedding", "operator", "cells", "programs"), EVERY, ids=names)
def test_an_operator_that_is_kept_is_not_sent_again(
    embedding: Embedding, operator: Operator, cells: int, programs: int
) -> None:
    with connect("inproc:", clock="stepped", cells=cells, embedding=embedding) as spu, spu.session() as session:
        first = session.solve(operator, vector(operator.parameters), analog_time=1.0, damping=0.3)
        before = session.uploaded_bytes
        drive = vector(operator.parameters, 5)
        found = session.solve(Kept(first.sequence, operator.parameters), drive, analog_time=LONG, damping=DAMPING)
        torch.testing.assert_close(found.value, solve_exactly(embedding, operator, drive, DAMPING), rtol=1e-9, atol=0)
        if programs == 1:
            assert session.uploaded_bytes - before <= 2 * 4 * 8  # drive and start
        assert found.sequence == 2 * programs
        session.solve(operator, drive, analog_time=1.0, damping=DAMPING)
        with pytest.raises(OperatorGone, match=f"program {first.sequence} is not here any more"):
            session.solve(Kept(first.sequence, operator.parameters), drive, analog_time=1.0, damping=DAMPING)


def test_the_state_in_sample_space_can_be_read_at_any_time() -> None:
    a, drive = LAYERS.dense(), vector(11)
    gram = a @ a.T + DAMPING * torch.eye(4, dtype=torch.float64)
    with connect("inproc:", clock="stepped", embedding="sample") as spu, spu.session() as session:
        with pytest.raises(NoProgram):
            session.read()
        applied = session.program(LAYERS, drive, damping=DAMPING, start="drive")
        session.advance(2.0)
        reading = session.read()
        w = relaxed(gram, a @ drive, a @ drive, 2.0)
        torch.testing.assert_close(reading.value, (drive - a.T @ w) / DAMPING, rtol=1e-9, atol=1e-9)
        assert (reading.sequence, reading.age) == (applied.sequence, 2.0)
    with connect("inproc:", clock="stepped", embedding="block") as spu, spu.session() as session:
        session.solve(LAYERS, drive, analog_time=1.0, damping=DAMPING)
        for ask in (session.read, lambda: session.program(LAYERS, drive, damping=DAMPING)):
            with pytest.raises(InvalidProgram, match="embedding 'block' gives each part its own time on a device"):
                ask()


def test_a_state_of_which_the_operator_is_forgotten_is_not_read() -> None:
    with connect("inproc:", clock="stepped", embedding="sample") as spu, spu.session() as session:
        session.solve(LAYERS, vector(11), analog_time=1.0, damping=DAMPING)
        state = session.save_state()
        assert session.restore_state(state).sequence == 2
        with pytest.raises(InvalidProgram, match="something else"):
            session.restore_state(state[1:])
        with pytest.raises(ReadInPast, match="program 2, whose operator is not known here"):
            session.read()


def test_an_operator_can_go_ahead() -> None:
    drive = vector(22)
    with connect("inproc:", clock="stepped", embedding="kronecker") as spu, spu.session() as session:
        with session.upload(FACTORS) as upload:
            found = upload.solve(drive, analog_time=LONG, damping=DAMPING)
        torch.testing.assert_close(found.value, solve_exactly(Kronecker(), FACTORS, drive, DAMPING), rtol=1e-9, atol=0)
        with session.upload(FACTORS):
            pass  # abandoned
        again = session.solve(FACTORS, drive, analog_time=LONG, damping=DAMPING)
        torch.testing.assert_close(again.value, found.value, rtol=1e-9, atol=0)


def test_a_device_that_is_too_small_is_sent_nothing() -> None:
    with connect("inproc:", cells=3, embedding="block") as spu, spu.session() as session:
        message = "embedding 'block' needs 6 cells for LayerRows.* the device has 3; no embedding of this operator"
        upload = session.upload(LAYERS)
        with pytest.raises(CapacityExceeded, match=message):
            upload.solve(vector(11), analog_time=1.0, damping=DAMPING)
        with pytest.raises(CapacityExceeded, match=message):
            session.solve(LAYERS, vector(11), analog_time=1.0, damping=DAMPING)
        assert session.uploaded_bytes == 0
    with connect("inproc:", cells=6) as spu, spu.session() as session:
        message = (
            r'needs 11 cells, the device has 6; what would fit: embedding="sample" \(4 cells\) or embedding="block"'
        )
        with pytest.raises(CapacityExceeded, match=message):
            session.solve(LAYERS, vector(11), analog_time=1.0, damping=DAMPING)
    with (
        connect("inproc:") as spu,
        spu.session() as session,
        pytest.raises(InvalidProgram, match='connect with embedding="kronecker"'),
    ):
        session.solve(FACTORS, vector(22), analog_time=1.0, damping=DAMPING)


def test_several_devices_are_refused_where_there_is_no_use_for_them() -> None:
    for embedding in (None, "direct", "sample"):
        with pytest.raises(InvalidProgram, match=r"address is .* is a single program, on a single device"):
            connect(["inproc:", "inproc:"], embedding=embedding)
    with pytest.raises(InvalidProgram, match="address is"):
        connect([], embedding="block")


@pytest.mark.parametrize(("embedding", "operator", "cells", "programs"), EVERY, ids=names)
def test_several_readings_of_each_program_or_a_clear_refusal(
    embedding: Embedding, operator: Operator, cells: int, programs: int
) -> None:
    drive = vector(operator.parameters)

    async def readings() -> list[torch.Tensor]:
        async with (
            await aio.connect("inproc:", clock="stepped", embedding=embedding) as spu,
            spu.session() as session,
        ):
            schedule = Schedule((ReadPlan(LONG), ReadPlan(LONG + 1.0, 0.5)), LONG + 1.0)
            events = session.upload(operator).run(Program(operator, drive, damping=DAMPING, schedule=schedule))
            _, *found = [event async for event in events]
            return [one.value for one in found]

    if embedding.stages > 1:
        with pytest.raises(InvalidProgram, match="readings is 2; expected one"):
            asyncio.run(readings())
        return
    for value in asyncio.run(readings()):
        torch.testing.assert_close(value, solve_exactly(embedding, operator, drive, DAMPING), rtol=1e-9, atol=0)


def test_a_drive_of_another_shape_is_refused() -> None:
    with connect("inproc:", embedding="sample") as spu, spu.session() as session:
        with pytest.raises(InvalidProgram, match="drive is of shape"):
            session.solve(LAYERS, vector(10), analog_time=1.0, damping=DAMPING)
        with pytest.raises(InvalidProgram, match="drive"):
            session.solve(LAYERS, vector(11) * float("nan"), analog_time=1.0, damping=DAMPING)
        with pytest.raises(InvalidProgram, match="operator is str"):
            session.solve("F", vector(11), analog_time=1.0, damping=DAMPING)  # type: ignore[arg-type]


def test_programs_without_readings_are_refused_where_they_have_to_be_read() -> None:
    async def streamed() -> None:
        async with (
            await aio.connect("inproc:", clock="stepped", embedding="kronecker") as spu,
            spu.session() as session,
        ):
            program = Program(FACTORS, vector(22), damping=DAMPING, schedule=Schedule(length=1.0))
            async for _ in session.upload(FACTORS).run(program):
                pass

    with pytest.raises(InvalidProgram, match="a program without readings would be of the last part alone"):
        asyncio.run(streamed())


def test_devices_side_by_side_are_halted_and_counted_together() -> None:
    options = {"clock": "stepped", "driver": "analog", "driver_option": {"preset": "8-bit"}, "embedding": "block"}
    with connect(["inproc:", "inproc:"], **options) as spu, spu.session() as session:
        session.solve(LAYERS, vector(11), analog_time=50.0, damping=DAMPING)
        both = spu.report()
        with connect("inproc:", **options) as one, one.session() as alone:
            alone.solve(LAYERS, vector(11), analog_time=50.0, damping=DAMPING)
            assert both["uploads"] == 2
            assert both == pytest.approx(one.report())
        spu.halt("a test")
        for lease in session.aio.lease.leases:
            with pytest.raises(DeviceHalted):
                wait(partial(lease.advance, 1.0, timeout=10.0))
