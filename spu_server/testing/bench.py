"""A driver on the bench: its calls as the daemon makes them, in its own process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spu_link import wire
from spu_link.errors import DeviceFault
from spu_link.operators import Dense
from spu_link.program import Program, StartPolicy
from spu_server.drivers.base import Capabilities, DriverOptions, Measured
from spu_server.drivers.deadline import ANSWER_SECONDS
from spu_server.drivers.hosted import CheckedDriver
from spu_server.drivers.process import DriverProcess


@dataclass(frozen=True)
class Law:
    """Uncoupled cells whose motion everybody can check: cell i relaxes at rate r_i to b_i / r_i.

    Attributes:
        rates: r, shape (n,), in 1/τ.
        drive: b, shape (n,).
        start: x₀, shape (n,).
        noise: κ₀.
    """

    rates: Tensor
    drive: Tensor
    start: Tensor
    noise: float = 0.0

    def mean(self, age: float) -> Tensor:
        """x̄(t) = b/r + (x₀ − b/r) e^(−rt)."""
        rest = self.drive / self.rates
        return rest + (self.start - rest) * torch.exp(-self.rates * age)

    def average(self, begin: float, end: float) -> Tensor:
        """Mean of x̄ from one age to another."""
        rest = self.drive / self.rates
        decay = torch.exp(-self.rates * begin) - torch.exp(-self.rates * end)
        return rest + (self.start - rest) * decay / (self.rates * (end - begin))

    def variance(self, age: float) -> Tensor:
        """κ₀ (1 − e^(−2rt)) / r."""
        return self.noise / self.rates * (1 - torch.exp(-2 * self.rates * age))

    def program(self, *, start: StartPolicy | Tensor | None = None, dtype: torch.dtype = torch.float64) -> Program:
        """The program that makes cells move so."""
        given = self.start.to(dtype) if start is None else start
        return Program(Dense(torch.diag(self.rates)), self.drive.to(dtype), noise=self.noise, start=given)


class Bench:
    """One driver, opened, with a device time that only goes on.

    Args:
        name: entry point of the driver.
        options: those that it is opened with.
        tolerance: largest error of a value that counts as right, as a fraction of the largest value in play; and
            relative, of a rate or a variance.
        deadline: timeout of a call, in seconds, beyond what the driver announces.

    Attributes:
        capabilities: as the driver states them.
    """

    def __init__(
        self, name: str, options: DriverOptions, *, tolerance: float = 1e-3, deadline: float = ANSWER_SECONDS
    ) -> None:
        self.name = name
        self.options = options
        self.tolerance = tolerance
        self.capabilities: Capabilities
        self.port = DriverProcess(name, options, deadline)
        self._deadline = deadline
        self._now = 0.0
        self._opened = False

    async def open(self) -> None:
        """Open the device.

        Raises:
            DeviceFault: with the driver's own words, when it cannot be opened.
        """
        self.capabilities = await self.port.start()
        self._opened = True

    async def fresh(self) -> None:
        """An idle device, whatever the last check has left behind; a driver that has failed is started again."""
        try:
            await self.port.halt(self.later(1.0))
        except DeviceFault:
            self.capabilities = await self.port.restart()

    async def reopen(self) -> None:
        """Close the device as the daemon does, and open it again."""
        await self.close()
        self.port = DriverProcess(self.name, self.options, self._deadline)
        await self.open()

    async def close(self) -> None:
        """Release the device."""
        if self._opened:
            self._opened = False
            await self.port.close()

    @property
    def cells(self) -> int:
        """Cells that the checks use: few."""
        return min(4, self.capabilities.cells)

    def later(self, duration: float) -> float:
        """A device time `duration` τ after everything so far."""
        self._now += duration
        return self._now

    def law(self, *, noise: float = 0.0) -> Law:
        """A law with a rate, a drive and a start of its own for each cell."""
        n = self.cells
        steps = torch.arange(n, dtype=torch.float64)
        return Law(1.0 + 0.5 * steps, 1.0 - 0.4 * steps, 0.5 + 0.25 * steps, noise)

    async def stage(self, program: Program, readings: Sequence[tuple[float, float]] = ()) -> None:
        """Upload a program as the daemon does, with the readings that come with it."""
        header, tensors = wire.header_of(program)
        for after, window in readings:
            header.reads.add(after=after, window=window)
        await self.port.stage(header.SerializeToString(), b"".join(wire.byte_views(tensors)))

    async def run(self, program: Program, ages: Sequence[float]) -> list[Measured]:
        """Stage a program, apply it, and take readings that were scheduled with it at ages in τ.

        A reading's time comes back as the age at which it was taken.
        """
        await self.stage(program, [(age, 0.0) for age in ages])
        at = self.later(1.0)
        await self.port.call(CheckedDriver.commit, at)
        taken = [await self.port.read(at + age, None) for age in ages]
        self._now = max([at, *(at + age for age in ages), *(reading.time for reading in taken)])
        return [Measured(reading.value, reading.time - at) for reading in taken]

    def assert_close(self, found: Tensor, expected: Tensor, what: str) -> None:
        """Values agree within the tolerance.

        Raises:
            AssertionError: saying `what` does not.
        """
        largest = max(1.0, float(expected.abs().max()))
        error = float((found.to(torch.float64) - expected).abs().max()) / largest
        assert error <= self.tolerance, (
            f"{what}: {found.tolist()} instead of {expected.tolist()}, "
            f"off by {error:.2g}; {self.tolerance:.2g} is allowed"
        )
