"""Small programs that run to their end in an interpreter of their own, which has imported everything beforehand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple, Self

import pytest

SECONDS = 60
"""After this time a program is ended, with the places where its threads stand on its standard error."""

SERVE = """
import faulthandler, gc, json, os, signal, sys
import torch, torch._dynamo  # which torch imports with the first optimizer
from torch import nn
import host_client.links.inproc, host_client.links.remote
from host_client import TNGD, aio, connect
from spu_link.errors import *
from spu_link.operators import Rows

torch.set_num_threads(1)
faulthandler.register(signal.SIGALRM, chain=True)
gc.collect()
gc.freeze()  # else each program looks through all of torch, several times at its end
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(order["out"], os.O_WRONLY), 1)
        os.dup2(os.open(order["err"], os.O_WRONLY), 2)
        signal.alarm(order["seconds"])
        exec(compile(order["code"], "program", "exec"), globals() | order["names"])
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    """Result of a program that has ended."""

    code: int
    out: str
    err: str


class Zygote:
    """Runs programs as ``python -X dev -W error`` would, without the seconds that it takes to import torch.

    Each is a fork that has used nothing yet, and exits as any program does. ``torch``, ``nn``, ``gc``, ``os``, ``sys``,
    ``connect``, ``aio``, ``TNGD``, ``Rows`` and all errors are there.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-X", "dev", "-W", "error", "-c", SERVE]
        # The allocator of -X dev fills what is freed, which at each exit is all of torch.
        environment = {**os.environ, "PYTHONMALLOC": "pymalloc"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, code: str, **names: object) -> Ended:
        """Run a program to its end.

        Args:
            code: of the program.
            names: further global variables, of the types of JSON.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            out.touch()
            err.touch()
            order = {"code": dedent(code), "names": names, "out": str(out), "err": str(err), "seconds": SECONDS}
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            assert answer, "the interpreter has ended"
            return Ended(int(answer), out.read_text(), err.read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """One for all tests of this process."""
    with Zygote() as one:
        yield one
