"""Choice of the processor on which the emulator computes."""

from __future__ import annotations

import pytest
import torch

from spu_link.errors import DeviceFault
from spu_link.operators import Dense, EmbeddingRows, LayerRows, LinearRows, Operator, Rows
from spu_link.program import Program
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.emulator import Emulator

NO_CUDA = not torch.cuda.is_available()


def operators() -> list[Operator]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    root = normal(30, 30)
    return [
        LayerRows([
            LinearRows(normal(8, 5), normal(3, 8, 4), bias=True),
            EmbeddingRows(torch.randint(5, (8, 2), generator=generator), normal(3, 8, 2, 6), embeddings=5),
        ]),
        Dense(root @ root.T / 30.0),
        Rows(normal(10, 30) / 5.0),
    ]  # fmt: skip


def readings(compute: str, noise: float = 0.0) -> list[torch.Tensor]:
    """Readings of a device that runs programs of all kinds one after the other, each from the state it is in."""
    device = Emulator(DriverOptions(compute=compute))
    values = []
    for number, operator in enumerate(operators()):
        drive = torch.linspace(-1.0, 1.0, operator.parameters)
        device.stage(Program(operator, drive, damping=0.1, noise=noise, start="keep" if number else "drive"))
        device.commit(10.0 * number)
        device.open_window(number, 10.0 * number + 1.0)
        values += [device.read(10.0 * number + 5.0, number), device.read(10.0 * number + 9.0, None)]
    return values


@pytest.mark.skipif(NO_CUDA, reason="no CUDA device here")
def test_a_gpu_reads_what_a_cpu_reads() -> None:
    for here, there in zip(readings("cpu"), readings("cuda"), strict=True):
        assert there.device.type == "cpu"
        torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6)
    assert all(bool(value.isfinite().all()) for value in readings("cuda", noise=0.1))


@pytest.mark.skipif(not NO_CUDA, reason="a CUDA device is here")
async def test_a_missing_gpu_is_reported_at_the_start() -> None:
    from host_client.aio import connect

    with pytest.raises(DeviceFault, match=r"compute is 'cuda', but torch .* finds no accelerator here"):
        await connect("inproc:", compute="cuda")


def test_programs_of_all_kinds_follow_each_other() -> None:
    assert [len(value) for value in readings("cpu")] == [54, 54, 30, 30, 30, 30]
