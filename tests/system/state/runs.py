"""Solves that differ in everything in which they may, and a device that afterwards is unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from host_client import Session, connect
from spu_link.operators import Dense, Kept, LayerRows, LinearRows, Operator, Rows
from spu_link.program import Reading
from tests.system.device import A, B


def few_rows(g: torch.Generator) -> Operator:
    """Eigenvectors at once; operands promoted to float64."""
    inputs, cotangents = torch.randn(5, 2, 6, generator=g), torch.randn(4, 5, 2, 7, generator=g)
    return LayerRows([LinearRows(inputs, cotangents, bias=True), Rows(torch.randn(20, 31, generator=g))])


def many_rows(g: torch.Generator) -> Operator:
    """The Lanczos route, some solves later the eigenvectors."""
    return Rows(torch.randn(280, 900, generator=g) / 30)


def large(g: torch.Generator) -> Operator:
    """The Lanczos route over float32 operands used where they came to lie, which is at no boundary."""
    rows = (torch.randn(257, columns, generator=g) / 200 for columns in (1, 38_931))
    return LayerRows([Rows(a) for a in rows])


def more_rows(g: torch.Generator) -> Operator:
    """Rows in float32 of a factor that is moved under as F, by the Lanczos route and then its eigenvectors."""
    inputs, cotangents = torch.randn(500, 16, generator=g), torch.randn(2, 500, 17, generator=g) / 100
    return LayerRows([LinearRows(inputs, cotangents, bias=True)])


def dense(g: torch.Generator) -> Operator:
    a = torch.randn(30, 40, generator=g)
    return Dense(a.T @ a / 40)


def large_dense(g: torch.Generator) -> Operator:
    a = torch.randn(100, 300, generator=g).double()
    return Dense(a.T @ a / 100)


OPERATORS = [few_rows, many_rows, large, more_rows, dense, large_dense]


@cache
def made(make: Callable[[torch.Generator], Operator], seed: int) -> Operator:
    return make(torch.Generator().manual_seed(seed))


class Run:
    """Solves that differ in everything that a program can differ in, the operator being kept three times of four."""

    def __init__(self, make: Callable[[torch.Generator], Operator], session: Session) -> None:
        self.make = make
        self.session = session
        self.sequence = 0

    def solves(self, first: int, last: int) -> list[Reading]:
        return [self.solve(number) for number in range(first, last)]

    def solve(self, number: int) -> Reading:
        operator = made(self.make, number // 4)
        g = torch.Generator().manual_seed(1000 + number)
        # In float64: readings in float32 would hide the last bits.
        b, x = (torch.randn(operator.parameters, generator=g, dtype=torch.float64) for _ in range(2))
        reading = self.session.solve(
            Kept(self.sequence, operator.parameters) if number % 4 else operator,
            b,
            damping=0.1 + 0.01 * number,
            noise=1e-3,
            start=("keep", "keep", "drive", "keep", x)[number % 5],
            precision="int16" if self.make is many_rows else None,
            analog_time=(0.7, 5.3, 50.1)[number % 3],
            window=0.4 * (number % 2),
            not_before=self.session.device_time + 0.3,
        )
        self.sequence = reading.sequence
        return reading


def same(one: Reading, other: Reading) -> bool:
    """Times of two runs compare as numbers alone."""
    pairs = (one.time, other.time), (one.age, other.age), (one.window, other.window)
    return torch.equal(one.value, other.value) and all(float(a) == float(b) for a, b in pairs)


@contextmanager
def stepped_inproc(seed: int = 0, **options: object) -> Iterator[Session]:
    with connect("inproc:", clock="stepped", seed=seed, **options) as spu, spu.session() as session:
        yield session


@contextmanager
def untouched(address: str) -> Iterator[Session]:
    """A device that afterwards is unchanged: program, time and bits."""
    with connect(address) as spu, spu.session() as session:
        before = session.solve(Rows(2 * A), B, damping=0.5, analog_time=1.0)
        yield session
        assert (spu.info.sequence, spu.info.time, spu.info.state) == (before.sequence, before.time, "running")
        assert same(session.read(), before)
        assert session.program(Kept(before.sequence, 3), B).sequence == before.sequence + 1
