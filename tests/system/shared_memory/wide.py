"""A program that is large enough for shared memory, and one that is sent by hand."""

from __future__ import annotations

import torch

from spu_link.operators import Rows
from spu_link.program import Program
from tests.system.device import LONG, A, B
from tests.system.raw import encoded
from tngd.spu.v1 import spu_pb2 as pb

N = 20_000
WIDE = Rows(torch.linspace(-1.0, 1.0, 2 * N, dtype=torch.float64).reshape(2, N) / N**0.5)
DRIVE = torch.linspace(1.0, 2.0, N, dtype=torch.float64)
DENSE = WIDE.a.T  # (N, 2)
EXPECTED = 2.0 * (DRIVE - DENSE @ torch.linalg.solve(0.5 * torch.eye(2).double() + WIDE.a @ DENSE, WIDE.a @ DRIVE))
"""(AᵀA + I/2)⁻¹ b, by Woodbury."""


def solve(session, **options):
    reading = session.solve(WIDE, DRIVE, damping=0.5, analog_time=LONG, **options)
    torch.testing.assert_close(reading.value, EXPECTED, rtol=1e-6, atol=1e-9)
    return reading


def place(region, offset=0, nbytes=None, data=b""):
    return pb.Place(region=region, offset=offset, nbytes=len(data) if nbytes is None else nbytes)


def small():
    return encoded(Program(Rows(A), B * 3, damping=0.5))


def upload(raw, header, **places):
    header.MergeFrom(pb.ProgramHeader(**places))
    header.session.CopyFrom(raw.session)
    return raw.send([pb.ProgramRequest(header=header, trailer=pb.ProgramTrailer())])
