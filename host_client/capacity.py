"""Description of a device as the client knows it: its properties and its capacity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Info:
    """Description and current status of a device.

    Attributes:
        driver: name of the driver.
        version: version of the daemon.
        cells: max number of cells of a program.
        max_upload_bytes: max bytes of one program's tensors.
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


Cell: TypeAlias = Literal["parameter", "row", "block parameter", "factor row"]
"""The meaning of a device's cell: a parameter; or, with an embedding, a row of the factor, a parameter of one block
at a time, or a row of a Kronecker factor."""


@dataclass(frozen=True)
class Capacity:
    """Capacity of a device.

    Attributes:
        upload_bytes: max bytes of one program's tensors.
        cells: max number of cells of a program.
        here: whether it is emulated on this machine, and so in this machine's memory.
        cell: what a cell stands for.
    """

    upload_bytes: int
    cells: int
    here: bool
    cell: Cell = "parameter"
