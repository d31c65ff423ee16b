"""Programs on their way to a device by every path: shared memory, gRPC on a Unix socket and on TCP, in this process.

The operator has 14 explicit rows, so the bytes are many and the device's work on them little. What a program takes in
this process (check, copy, verify, commit) is what the others add to.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from host_client import Session, connect
from spu_lab.benchmarks.timing import Subjects, medians
from spu_lab.local_daemon import local_daemon
from spu_link.operators import Rows
from spu_link.precision import Precision
from spu_link.program import Program

ROWS = 14
SIZES = {"4KB": 4_000, "400KB": 400_000, "5.8MB": 5_800_000, "100MB": 100_000_000}
"""Bytes of tensors of one program."""

REFERENCE = "5.8MB"
"""The upload of a step on the reference network."""

DTYPES: tuple[Precision, ...] = ("float32", "float16", "bfloat16", "int16")
"""Precisions in which its operator travels."""

RATIOS = {
    "link_shared_vs_grpc": "seconds of a 5.8 MB program over shared memory, over those in chunks on the same Unix "
    "socket.",
    "link_tcp_vs_unix": "seconds of a 5.8 MB program over TCP on the loopback interface, over those on a Unix "
    "socket, both in chunks.",
    "link_shared_vs_inprocess": "seconds of a 5.8 MB program over shared memory, over those in this process.",
    "link_shared_overhead_vs_3ms": "what a solve of 5.8 MB, reading included, takes longer over shared memory than "
    "in this process, over 3 ms.",
    "link_tiny_solve_overhead_vs_1ms": "the same for a solve of four cells, over 1 ms.",
    "link_shared_int16_vs_float32": "seconds of a 5.8 MB program with its operator in 16-bit codes, over those in "
    "float32, both over shared memory; encoding and decoding included.",
    "link_grpc_int16_vs_float32": "the same in chunks on a Unix socket.",
}


def run(rounds: int = 5) -> dict[str, Any]:
    """Measure; every path has its turn in each of `rounds` rounds, with a daemon of its own."""
    with local_daemon() as shared, local_daemon() as unix, _tcp_daemon() as tcp:
        # Without its memory socket a daemon takes chunks alone.
        os.unlink(f"{unix.removeprefix('unix:')}.memory")
        sides: dict[str, Callable[[], Subjects]] = {
            "shared": partial(_subjects, shared, "shared-memory"),
            "unix": partial(_subjects, unix, "grpc"),
            "tcp": partial(_subjects, tcp, "grpc"),
            "inprocess": partial(_subjects, "inproc:", "in-process"),
        }
        seconds = medians(sides, rounds=rounds, repeats=10)
    program, solve = f"program_{REFERENCE}", f"solve_{REFERENCE}"
    return {
        "ratios": {
            "link_shared_vs_grpc": seconds[f"shared_{program}"] / seconds[f"unix_{program}"],
            "link_tcp_vs_unix": seconds[f"tcp_{program}"] / seconds[f"unix_{program}"],
            "link_shared_vs_inprocess": seconds[f"shared_{program}"] / seconds[f"inprocess_{program}"],
            "link_shared_overhead_vs_3ms": (seconds[f"shared_{solve}"] - seconds[f"inprocess_{solve}"]) / 3e-3,
            "link_tiny_solve_overhead_vs_1ms": (seconds["shared_tiny_solve"] - seconds["inprocess_tiny_solve"]) / 1e-3,
            "link_shared_int16_vs_float32": seconds["shared_program_int16"] / seconds["shared_program_float32"],
            "link_grpc_int16_vs_float32": seconds["unix_program_int16"] / seconds["unix_program_float32"],
        },
        "seconds": seconds,
        "bytes_per_second": {
            f"{side}_{size}": nbytes / seconds[f"{side}_program_{size}"]
            for side in sides
            for size, nbytes in SIZES.items()
        },
        "sizes": SIZES,
        "bytes_by_dtype": {dtype: _bytes_in(dtype) for dtype in DTYPES},
        "rows": ROWS,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }


@contextmanager
def _tcp_daemon() -> Iterator[str]:
    """A daemon on the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        tcp = f"127.0.0.1:{free.getsockname()[1]}"
    with local_daemon(options=["--listen", tcp]):
        yield tcp


def _subjects(address: str, path: str) -> Subjects:
    """Programs of every size, and the smallest calls. What goes the wrong way is not measured."""
    logging.getLogger("host_client.links.memory").setLevel(logging.ERROR)  # that there is no shared memory is meant
    spu = connect(address)
    session = spu.open_session()  # until the process ends: the daemon sees it go
    operator, drive = _tensors(SIZES[REFERENCE])
    _program(session, operator, drive)
    if set(session.bytes_by_path) != {path}:
        raise RuntimeError(f"{address}: bytes went by {set(session.bytes_by_path)}, expected {path}")
    small, ones = Rows(torch.ones(2, 4)), torch.ones(4)
    return {
        "info": lambda: spu.info,
        "tiny_solve": lambda: session.solve(small, ones, analog_time=50.0, damping=1.0, start="drive"),
        f"solve_{REFERENCE}": lambda: session.solve(operator, drive, analog_time=50.0, damping=1.0, start="drive"),
        **{f"program_{size}": partial(_program, session, *_tensors(nbytes)) for size, nbytes in SIZES.items()},
        **{f"program_{dtype}": partial(_program, session, operator, drive, dtype) for dtype in DTYPES},
    }


def _tensors(nbytes: int) -> tuple[Rows, torch.Tensor]:
    cells = nbytes // (4 * (ROWS + 1))
    return Rows(torch.ones(ROWS, cells)), torch.ones(cells)


def _bytes_in(dtype: Precision) -> int:
    """Bytes of the reference program in a dtype."""
    return Program(*_tensors(SIZES[REFERENCE]), precision=dtype).nbytes


def _program(session: Session, operator: Rows, drive: torch.Tensor, dtype: Precision | None = None) -> None:
    session.program(operator, drive, damping=1.0, start="drive", precision=dtype)
