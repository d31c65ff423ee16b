"""A header that cannot be is refused before anything is reserved."""

from __future__ import annotations

import psutil
import pytest
import torch

from spu_link.errors import CapacityExceeded, InvalidProgram
from spu_link.operators import Dense, LinearRows, Rows
from spu_link.program import Program
from tests.daemon import Daemon
from tests.system.bad_input.headers import HEADERS
from tests.system.bad_input.programs import TENSOR, dense, program
from tests.system.device import CELLS, SteadyDevice, uploads_in
from tests.system.raw import encoded, refused

NAN, INF = float("nan"), float("inf")


def test_the_untouched_program_is_good(device):
    with device.raw() as raw:
        assert raw.upload(*encoded(program()))[0].applied.sequence == device.sequence + 1
        assert raw.upload(*encoded(dense()))[0].applied.sequence == device.sequence + 2
    device.sequence += 2
    device.settle()


@pytest.mark.parametrize(("change", "error", "match"), HEADERS.values(), ids=HEADERS)
def test_a_bad_header_is_refused_before_anything_is_reserved(device, change, error, match):
    header, data = encoded(program())
    change(header)
    if error is CapacityExceeded:
        header.tensors[TENSOR["drive"]].shape[:] = header.tensors[TENSOR["start"]].shape[:] = [2**63 + 56]
    with device.raw() as raw, refused(error, match):
        raw.upload(header, data)


@pytest.mark.parametrize("extents", [(3, 4), (2**33, 2**33 - 1)], ids=["small", "huge"])
def test_a_dense_matrix_that_is_not_square_is_refused(device, extents):
    header, data = encoded(dense())
    header.tensors[0].shape[:] = extents
    with device.raw() as raw, refused(InvalidProgram, "dense.matrix"):
        raw.upload(header, data)
    with pytest.raises(InvalidProgram, match=r"dense\.matrix"):
        Dense(torch.ones(3, 4))


@pytest.mark.parametrize("extents", [(2**40, 2**20), (2**63, 2**20), (2**64 - 1, 1), (1, 2**64 - 1)])
def test_announced_bytes_beyond_the_limit_are_refused_without_reserving_them(device, extents):
    header, data = encoded(Program(Rows(torch.ones(2, 3)), torch.ones(3)))
    header.tensors[0].shape[:] = extents
    header.tensors[1].shape[:] = extents[1:]
    before = psutil.Process(device.daemon.process.pid).memory_info().rss
    with device.raw() as raw:
        with refused(CapacityExceeded):
            raw.upload(header, data)
        assert not uploads_in(device.daemon)
    assert psutil.Process(device.daemon.process.pid).memory_info().rss - before < 1 << 26


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A device of 100 cells and 10,000 bytes."""
    options = ("--clock", "stepped", "--cells", "100", "--max-bytes", "10000")
    with Daemon(tmp_path_factory.mktemp("d") / "s", *options) as one:
        yield one


@pytest.mark.parametrize(
    ("operator", "match"),
    [
        (Rows(torch.ones(1, 101)), "101 cells"),
        (Rows(torch.ones(25, 100)), "10400 bytes"),
        (LinearRows(torch.ones(1, 40), torch.ones(1, 1, 40), bias=False), "1600 cells"),
        (Dense(torch.eye(50)), "10200 bytes"),
    ],
    ids=["cells", "bytes", "cells of structured factors", "bytes of a dense matrix"],
)
def test_a_program_larger_than_the_device_is_refused(small, operator, match):
    device = SteadyDevice(small)
    drive = torch.ones(operator.parameters)
    with device.raw() as raw, refused(CapacityExceeded, match):
        raw.upload(*encoded(Program(operator, drive)))
    with device.session() as session, pytest.raises(CapacityExceeded, match=match):
        session.program(operator, drive)
    with device.session() as session:  # the largest that fits
        session.program(Rows(torch.ones(24, 100)), torch.ones(100))
        session.program(Rows(torch.ones(2, CELLS)), torch.ones(CELLS))
    SteadyDevice(small).assert_unharmed()


def test_wrong_shapes_dtypes_and_numbers_are_refused_in_python_before_they_travel(device):
    with device.session() as session:
        for drive in (torch.ones(4), torch.ones(1, 3), torch.ones(3, dtype=torch.int64), torch.ones(3).half()):
            with pytest.raises(InvalidProgram, match="drive"):
                session.program(Rows(torch.ones(2, 3)), drive)
        for arguments in (
            {"damping": -1.0},
            {"damping": NAN},
            {"damping": INF},
            {"noise": -1.0},
            {"noise": NAN},
            {"noise": INF},
            {"start": "there"},
            {"start": torch.ones(2)},
        ):
            with pytest.raises(InvalidProgram, match=next(iter(arguments))):
                session.program(Rows(torch.ones(2, 3)), torch.ones(3), **arguments)
        for analog_time in (-1.0, NAN, INF):
            with pytest.raises(InvalidProgram, match="after"):
                session.solve(Rows(torch.ones(2, 3)), torch.ones(3), analog_time=analog_time)
        with pytest.raises(InvalidProgram, match="window"):
            session.solve(Rows(torch.ones(2, 3)), torch.ones(3), analog_time=1.0, window=2.0)
    for wrong in (torch.ones(2, 3, 1), torch.ones(2, 3, dtype=torch.int32), torch.ones(2, 0), torch.ones(2, 3).bool()):
        with pytest.raises(InvalidProgram, match="rows"):
            Rows(wrong)
