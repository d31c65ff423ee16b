"""The tables of docs/errors.md: every class of error and warning, from its docstring, its `remedy` and an example.

The examples are not written down: each is provoked here, and the message is the one that came.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed, nn

from host_client import KFAC, NGD, TNGD, Session, connect, solve_dense
from host_client.record import load
from spu_lab import catalogue, result_folder
from spu_lab.performance.page import read_results
from spu_lab.spice.ngspice import ngspice
from spu_lab.tasks.squad import split_by_passage
from spu_lab.timeline import parse_steps
from spu_lab.training import checkpoint
from spu_link import wire
from spu_link.operators import Dense, Kept, Rows
from spu_server.addresses import Endpoints
from spu_server.daemon_settings import ServeSettings
from spu_server.drivers.event_log import Log
from spu_server.sessions import SessionKey, Sessions
from tngd.spu.v1 import spu_pb2 as pb
from tools.pages import escaped, paragraph, table

PAGE = "errors.md"
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("spu_link", "spu_server", "host_client", "spu_lab")

INTERNAL = {
    "LinkFailed": "the board driver makes a fault of the device from it",
    "RefusedAccess": "of the board simulator's memory, becomes an answer on the line",
    "Skipped": "of the conformance suite, becomes a line of its report",
    "SourceFailed": "becomes part of the message of DataUnavailable or EncoderUnavailable",
}
"""Classes that no user sees, and why."""

WITHOUT_EXAMPLE = {
    "BoardError": "needs a board that is broken",
    "CurvatureMismatch": "needs a fault of the capture",
    "DaemonFailed": "takes the start of a process",
    "DataUnavailable": "needs a machine without a network",
    "DeviceUnavailable": "waits for a connection",
    "DriverUnusable": "needs a broken distribution",
    "EncoderUnavailable": "needs a machine without a network",
    "Clipped": "needs a board",
    "WrongProcess": "needs a forked process",
    "NotInLog": "needs a recorded run",
    "Persistent": "a base class",
    "Retryable": "a base class",
    "SimulationFailed": "needs ngspice",
    "SpuError": "a base class",
    "TooStale": "waits for a reading",
}
"""Classes whose example would take too much, and why."""

NOWHERE = Path("results/none")
"""A folder that does not exist."""


def classes() -> dict[str, type[Exception]]:
    """Return every class of error and warning that a user may see, by name, in the order of packages and files.

    Raises:
        LookupError: for a class without a `remedy` of its own.
    """
    for name, cls in _classes().items():
        if "remedy" not in vars(cls):
            raise LookupError(f"{cls.__module__}.{name} has no `remedy`: what a user can do about it")
    return _classes()


@cache
def _classes() -> dict[str, type[Exception]]:
    known, found = {"Exception", "Warning"}, {}
    known |= {name for name in dir(__import__("builtins")) if name.endswith(("Error", "Warning"))}
    definitions = [definition for package in PACKAGES for definition in _definitions(ROOT / package)]
    while new := [(file, node) for file, node in definitions if node.name not in known and _bases(node) & known]:
        for file, node in new:
            known.add(node.name)
            if node.name.startswith("_") or node.name in INTERNAL:
                continue
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[node.name] = getattr(import_module(module), node.name)
    return found


def _definitions(folder: Path) -> Iterator[tuple[Path, ast.ClassDef]]:
    for file in sorted(folder.rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                yield file, node


def _bases(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base).rpartition(".")[2] for base in node.bases}


# Examples


@contextmanager
def device(**options: Any) -> Iterator[Session]:
    """Open a session on a device in this process, on a stepped clock unless the options say otherwise."""
    with connect("inproc:", **{"clock": "stepped", "seed": 0, **options}) as spu, spu.session() as session:
        yield session


ROWS, DRIVE = Rows(torch.eye(2)), torch.ones(2)


def deadline() -> None:
    """Wait for a time that a stepped clock does not reach."""
    with device() as session:
        session.program(ROWS, DRIVE, damping=0.1)
        session.read(at=10.0, timeout=0.01)


def sessions(case: str) -> None:
    """Use sessions in a wrong way, at a clock of their own."""
    now = [0.0]
    known = Sessions(epoch=1, clock=lambda: now[0])
    first = known.open("training on host-a", 10.0)
    if case == "busy":
        known.open("training on host-b", 10.0)
    now[0] = 11.0
    if case == "stale":
        known.open("training on host-b", 10.0)
    known.check(SessionKey("", 1, 0) if case == "required" else first)


def closed() -> None:
    """Use a session after its end."""
    with device() as session:
        session.close()
        session.advance(1.0)


def corrupt() -> None:
    """Finish an upload with the checksum of other bytes."""
    assembler = wire.Assembler(4, wire.writer(bytearray(4)))
    for chunk in wire.numbered([b"abcd"]):
        assembler.add(chunk)
    assembler.finish(0)


def halted() -> None:
    """Use a session after a halt."""
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        spu.halt("smoke in the laboratory")
        session.advance(1.0)


def epochs() -> None:
    """Use the device time of one run with another."""
    with device() as first, device() as second:
        second.program(ROWS, DRIVE, damping=0.1)
        second.read(at=first.program(ROWS, DRIVE, damping=0.1).time)


def past() -> None:
    """Read at a time that has passed."""
    with device() as session:
        session.program(ROWS, DRIVE, damping=0.1)
        session.advance(10.0)
        session.read(at=1.0)


def over() -> None:
    """Finish an upload twice."""
    with device() as session, session.upload(ROWS) as upload:
        for _ in range(2):
            upload.solve(DRIVE, damping=0.1, analog_time=1.0)


def header(**changes: Any) -> None:
    """Check the header of a program with something unknown in it."""
    blocks = [pb.Block(**changes)] if changes else [pb.Block(dense=pb.DenseBlock())]
    tensors = [] if changes else [pb.TensorSpec(role=99, dtype=pb.DTYPE_FLOAT32, shape=[2, 2])]  # type: ignore[arg-type]
    made = pb.ProgramHeader(blocks=blocks, tensors=tensors)
    if changes:
        wire.check_features(made, ("dense",))
    wire.layout(made, cells=10, max_bytes=1000)


class Network(nn.Module):
    """A function of a matrix of its own."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.function = nn.Parameter(torch.eye(3)), function

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return self.function(x, self.w)


class Difference(nn.Module):
    """A loss that nothing is known of."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return (output - target).abs().sum().sqrt()


def step(model: nn.Module, x: Tensor, optimizer: type[Any] = NGD) -> None:
    """Take a step of a digital natural gradient on a classifier."""
    criterion = nn.CrossEntropyLoss()
    used = optimizer(model, criterion, lr=0.1, damping=0.1)
    criterion(model(x), torch.arange(len(x)) % 3).backward()
    used.step()


def too_large() -> None:
    """Train a network with a device that has too few cells."""
    with device(cells=4) as session:
        model, criterion = nn.Linear(3, 3), nn.CrossEntropyLoss()
        optimizer = TNGD(model, criterion, session, lr=0.1, damping=0.1, analog_time=5.0)
        criterion(model(torch.ones(4, 3)), torch.zeros(4, dtype=torch.long)).backward()
        optimizer.step()


def no_kfac() -> None:
    """Make K-FAC without the library that it needs."""
    with mock.patch.dict(sys.modules, {"curvlinops": None}):
        step(nn.Linear(3, 3), torch.ones(4, 3), KFAC)


def no_ngspice() -> None:
    """Look for ngspice where no programs are."""
    with mock.patch.dict(os.environ, {"PATH": ""}):
        ngspice()


def in_use() -> None:
    """Ask for the folder of another run."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.json").write_text('{"status": "finished"}')
        (Path(folder) / "steps.csv").touch()
        try:
            result_folder.check_free(Path(folder), "run", overwrite=False)
        except result_folder.FolderInUse as error:
            raise type(error)(str(error).replace(folder, "results/train")) from None


async def remote() -> None:
    """Listen where other machines can reach the daemon."""
    await Endpoints().bind(["0.0.0.0:50051"], insecure_remote=False)


def call(function: Callable[[Session], object], **options: Any) -> Callable[[], None]:
    """Return what calls something of a session on a device."""

    def run() -> None:
        with device(**options) as session:
            function(session)

    return run


X = torch.arange(12.0).view(4, 3).sin()

SECOND_RANK = """
import sys
from torch import distributed

distributed.init_process_group("gloo", init_method=sys.argv[1], rank=1, world_size=2)
sys.stdin.read()  # until the first rank is connected as well, and has taken its step
distributed.destroy_process_group()
"""


def process_group() -> None:
    """Take a step in a process group of two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        with subprocess.Popen([sys.executable, "-c", SECOND_RANK, store], stdin=subprocess.PIPE):
            distributed.init_process_group("gloo", init_method=store, rank=0, world_size=2)
            try:
                step(nn.Linear(3, 3), X)
            finally:
                distributed.destroy_process_group()


EXAMPLES: dict[str, Callable[[], object]] = {
    "AddressError": lambda: asyncio.run(remote()),
    "BadSettings": lambda: ServeSettings.load(None, rate=-1.0),
    "CapacityExceeded": call(lambda session: session.program(Dense(torch.eye(3)), torch.ones(3), damping=0.1), cells=2),
    "CheckpointUnusable": lambda: checkpoint.load(NOWHERE),
    "ClockMismatch": call(lambda session: session.advance(1.0), clock="free"),
    "CurvatureApproximation": lambda: step(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), X),
    "CurvatureFallback": lambda: step(Network(lambda x, w: x @ torch.linalg.matrix_exp(w)), X),
    "CurvatureTooLarge": too_large,
    "DataMisplaced": lambda: catalogue.data_of(catalogue.find("spu_lab.experiments", "noise"), "noise", NOWHERE),
    "DeadlineExceeded": deadline,
    "DeviceBusy": lambda: sessions("busy"),
    "DeviceFault": call(print, driver="board"),
    "DeviceHalted": halted,
    "DeviceNotTaken": lambda: catalogue.find("spu_lab.experiments", "noise").run(NOWHERE, "unix:/tmp/spu.sock", None),
    "Diverged": lambda: step(nn.Linear(3, 3), torch.full((4, 3), float("nan"))),
    "EpochMismatch": epochs,
    "FolderInUse": in_use,
    "InvalidQuestions": lambda: split_by_passage([], [1], lambda question: True),
    "InvalidProgram": call(lambda session: session.program(ROWS, DRIVE, damping=-1.0)),
    "LibraryMissing": no_kfac,
    "LogUnusable": lambda: Log.load(NOWHERE),
    "SoftwareMissing": no_ngspice,
    "NoProgram": call(lambda session: session.read()),
    "NoResults": lambda: read_results(NOWHERE),
    "NoSuchWindow": lambda: parse_steps("four"),
    "OperatorGone": call(lambda session: session.program(Kept(3, 2), DRIVE, damping=0.1)),
    "ProtocolError": over,
    "ReadInPast": past,
    "SessionClosed": closed,
    "SessionExpired": lambda: sessions("expired"),
    "SessionRequired": lambda: sessions("required"),
    "StaleSession": lambda: sessions("stale"),
    "TooManyParameters": lambda: NGD(nn.Linear(200, 200), nn.MSELoss(), lr=0.1, damping=0.1, solver=solve_dense),
    "UnknownName": lambda: catalogue.find("spu_lab.experiments", "mnits"),
    "UnknownRole": header,
    "UnreadableRecord": lambda: load(NOWHERE),
    "Unsupported": call(lambda session: session.save_state(), driver="analog"),
    "UnsupportedBlock": lambda: header(linear=pb.LinearBlock()),
    "UnsupportedCriterion": lambda: NGD(nn.Linear(3, 3), Difference(), lr=0.1, damping=0.1),
    "UnsupportedLayer": lambda: step(Network(lambda x, w: x @ w), X, KFAC),
    "UnsupportedProcessGroup": process_group,
    "UploadCorrupt": corrupt,
}


def provoked(cls: type[Exception]) -> str:
    """Return the message of an error or a warning of a class, from the example that provokes it.

    Raises:
        AssertionError: when nothing comes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", cls) if issubclass(cls, Warning) else warnings.simplefilter("ignore")
            EXAMPLES[cls.__name__]()
    except cls as error:
        if type(error) is cls:
            return re.sub(r"\d{15,}", "…", str(error).replace(f"{ROOT}/", ""))
        raise
    raise AssertionError(f"the example of {cls.__name__} does not raise it")


# Tables


def section(*prefixes: str) -> Callable[[], str]:
    """Return what gives the table of the classes whose modules begin with one of these, and with no longer one."""

    def rows() -> str:
        chosen = [cls for cls in classes().values() if _home(cls) in prefixes]
        return table(("class", "raised when", "what to do", "for example"), [_row(cls) for cls in chosen])

    return rows


def _home(cls: type[Exception]) -> str:
    """Return the longest of the prefixes of `TABLES` that a class's module begins with."""
    return max((one for ones in SECTIONS.values() for one in ones if cls.__module__.startswith(one)), key=len)


def _row(cls: type[Any]) -> tuple[str, ...]:
    if cls.__name__ in WITHOUT_EXAMPLE:
        example = "–"
    else:
        example = "<br>".join(escaped(line) for line in provoked(cls).splitlines())
    return f"`{cls.__name__}`", escaped(paragraph(cls.__doc__)), escaped(cls.remedy), re.sub(r"\s+", " ", example)


SECTIONS = {
    "device": ("spu_link",),
    "training": ("host_client",),
    "commands": ("spu_lab",),
    "daemon": ("spu_server",),
}
"""The tables of the page, and the modules whose classes they hold."""

TABLES = {name: section(*prefixes) for name, prefixes in SECTIONS.items()}
