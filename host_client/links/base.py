"""What a link does, and what the client knows of a device."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from host_client.clock import Exchange
from host_client.forked import Owned
from spu_link.device_time import DeviceTime
from spu_link.errors import DeadlineExceeded
from spu_link.operators import Operator
from spu_link.precision import Precision
from spu_link.program import Applied, Program, Reading, Restored
from tngd.spu.v1 import spu_pb2 as pb

T = TypeVar("T")


@dataclass(frozen=True)
class Info:
    """What a device is and how it stands.

    Attributes:
        driver: name of the driver.
        version: version of the daemon.
        cells: most cells a program may use.
        max_upload_bytes: most bytes of one program's tensors.
        tau: time constant in seconds.
        clock: ``"free"`` (device time runs by itself) or ``"stepped"`` (it moves by `advance`).
        rate: τ per second of wall time; 0 on a stepped clock.
        time: device time, in τ; a `DeviceTime`.
        epoch: identity of the daemon's run; times of two epochs never compare.
        sequence: number of the program in force; 0 before the first.
        state: ``"idle"``, ``"running"``, ``"halted"``, ``"fault"`` or ``"restarting"``.
        fault: why the driver failed, until a session is opened after its restart; else empty.
        session_holder: name of the session's holder; None without one.
        features: names of block kinds and optional abilities.
        longest_stall: longest time in the last 10 s that the daemon did not get to its calls, in seconds.
        memory_address: where memory is shared with the daemon; empty where it cannot be.
        restarts: how often the driver has been restarted in this run of the daemon.
        calibrated: device time, in τ, at which the device was calibrated after it was opened last; None: it was not.
    """

    driver: str
    version: str
    cells: int
    max_upload_bytes: int
    tau: float
    clock: Literal["free", "stepped"]
    rate: float
    time: float
    epoch: int
    sequence: int
    state: str
    fault: str
    session_holder: str | None
    features: tuple[str, ...]
    longest_stall: float
    memory_address: str = ""
    restarts: int = 0
    calibrated: float | None = None

    @classmethod
    def from_message(cls, message: pb.GetInfoResponse) -> Info:
        """Information as the daemon sends it."""
        return cls(
            driver=message.driver,
            version=message.version,
            cells=message.cells,
            max_upload_bytes=message.max_upload_bytes,
            tau=message.tau,
            clock="stepped" if message.clock == pb.CLOCK_KIND_STEPPED else "free",
            rate=message.rate,
            time=DeviceTime(message.time, message.epoch),
            epoch=message.epoch,
            sequence=message.sequence,
            state=pb.DeviceState.Name(message.state).removeprefix("DEVICE_STATE_").lower(),
            fault=message.fault,
            session_holder=message.session_holder if message.session_held else None,
            features=tuple(message.features),
            longest_stall=message.longest_stall,
            restarts=message.restarts,
            memory_address=message.memory_address,
            calibrated=message.calibrated if message.HasField("calibrated") else None,
        )


Cell: TypeAlias = Literal["parameter", "row", "block parameter", "factor row"]
"""What a cell of a device stands for: a parameter; or, with an embedding, a row of the factor, a parameter of one block
at a time, or a row of a Kronecker factor."""


@dataclass(frozen=True)
class Capacity:
    """What a device can hold.

    Attributes:
        upload_bytes: most bytes of one program's tensors.
        cells: most cells a program may use.
        here: whether it is emulated on this machine, and so in this machine's memory.
        cell: what a cell stands for.
    """

    upload_bytes: int
    cells: int
    here: bool
    cell: Cell = "parameter"


@dataclass(frozen=True)
class ReadPlan:
    """A reading to take under a program that is being uploaded.

    Attributes:
        after: device time from the instant the program takes hold, in τ.
        window: average over the last `window` τ before it; 0 for the state itself.
    """

    after: float
    window: float = 0.0


def plans(reads: Sequence[ReadPlan], not_before: float | None) -> pb.ProgramHeader:
    """Readings and earliest time as part of a header."""
    header = pb.ProgramHeader(reads=[pb.ScheduledRead(after=read.after, window=read.window) for read in reads])
    if not_before is not None:
        header.not_before = not_before
    return header


Path: TypeAlias = Literal["shared-memory", "grpc", "in-process"]
"""How bytes get to a device."""


class Upload(ABC):
    """One program on its way: the operator, ahead if there is time, and then the rest.

    It ends with `finish` or `abandon`, either of which may be called after a `begin` that failed.

    Attributes:
        path: how the bytes go; known from the first of them on.
        sent_bytes: bytes of tensors that have left so far.
    """

    path: Path
    sent_bytes: int = 0

    @abstractmethod
    async def begin(self) -> None:
        """Send the operator ahead."""

    @abstractmethod
    def finish(
        self, program: Program, reads: Sequence[ReadPlan], not_before: float | None, *, timeout: float
    ) -> AsyncGenerator[Applied | Reading, None]:
        """Send the rest of a program with this operator: first when it took hold, then each reading, in time order."""

    @abstractmethod
    async def abandon(self) -> None:
        """Break off. Nothing is left behind, and the old program goes on."""


async def until(deadline: float, call: str, awaitable: Awaitable[T]) -> T:
    """Await something that must come by `deadline`, in seconds of the loop's clock.

    Raises:
        DeadlineExceeded: when it does not.
    """
    try:
        async with asyncio.timeout_at(deadline):
            return await awaitable
    except TimeoutError:
        raise DeadlineExceeded(
            f"{call}: the device did not answer within the deadline; call again, or with a larger timeout"
        ) from None


class Link(Owned, ABC):
    """One way to one device. Every call raises an `SpuError` when it fails, and none waits longer than its deadline."""

    address: str

    def copies_at_once(self, session: pb.SessionRef) -> bool:
        """Whether `Upload.begin` is done as soon as it has copied the operator, however slow the way to the device."""
        return True

    @abstractmethod
    async def info(self, *, timeout: float) -> Info:
        """What the device is and how it stands."""

    @abstractmethod
    async def time(self, *, timeout: float) -> Exchange:
        """Ask for the device's time."""

    @abstractmethod
    async def report(self, *, timeout: float) -> dict[str, float]:
        """What has happened on the device since its driver was opened, in named numbers."""

    @abstractmethod
    async def open_session(self, holder: str, ttl: float, *, timeout: float) -> pb.SessionRef:
        """Take the device."""

    @abstractmethod
    async def renew(self, session: pb.SessionRef, *, timeout: float) -> None:
        """Heartbeat."""

    @abstractmethod
    async def close_session(self, session: pb.SessionRef, *, timeout: float) -> None:
        """Give the device back."""

    @abstractmethod
    def upload(self, session: pb.SessionRef, operator: Operator, precision: Precision | None) -> Upload:
        """A program on its way to the device, its operator in a precision; nothing is sent yet."""

    @abstractmethod
    async def advance(self, session: pb.SessionRef, duration: float, *, timeout: float) -> float:
        """Move a stepped clock; the new device time."""

    @abstractmethod
    async def read(self, session: pb.SessionRef, at: float | None, window: float, *, timeout: float) -> Reading:
        """Take one reading."""

    @abstractmethod
    async def save_state(self, session: pb.SessionRef, *, timeout: float) -> bytes:
        """The device's whole state."""

    @abstractmethod
    async def restore_state(self, session: pb.SessionRef, state: bytes, *, timeout: float) -> Restored:
        """Let a saved state take hold."""

    @abstractmethod
    async def halt(self, reason: str, *, timeout: float) -> float:
        """Stop the device; the device time of the halt."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the device."""
