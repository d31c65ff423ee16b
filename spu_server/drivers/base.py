"""The driver interface.

A driver is synchronous and knows nothing of sessions, clocks or sockets: the daemon runs it in a separate process and
calls it with device times that never go back. Device time is in units of the device's time constant τ. Any exception
is a device fault, except the errors of `spu_link.errors` that `stage` may raise to refuse a program.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:  # settings are checked, and drivers found, before torch is loaded
    from torch import Tensor

    from spu_link.program import Program

INTERFACE = 1
"""Version of this interface. It grows when a driver written for the old one would no longer do."""


class GeneralOptions(BaseModel):
    """Options that every driver is opened with; their descriptions are the help of ``spu-server serve``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clock: Literal["free", "stepped"] = Field(
        default="free",
        description="free: device time runs with this machine's clock. stepped: it moves only by the client's advance.",
    )
    rate: float | None = Field(
        default=None,
        gt=0,
        le=1e15,
        allow_inf_nan=False,
        description="Speed of a free clock, in τ per second of wall time.",
        json_schema_extra={"show_default": "real time, 1 / tau"},
    )
    tau: float = Field(
        default=1e-6,
        ge=1e-15,
        le=1e15,
        allow_inf_nan=False,
        description="Time constant τ of the device, in seconds.",
        json_schema_extra={"show_default": "1e-6"},
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the device's noise, 0 to 2^63 − 1.")
    cells: int = Field(
        default=200_000_000, ge=1, lt=2**63, description="Max number of cells (parameters) of a program."
    )
    max_bytes: int = Field(
        default=8 << 30,
        ge=1,
        lt=2**63,
        description="Max number of bytes of tensors in one program.",
        json_schema_extra={"show_default": "8 GiB"},
    )
    compute: str = Field(
        default="cpu",
        pattern=r"^[a-z]+(:\d+)?$",
        description="Where the emulator computes: cpu, cuda, or cuda:INDEX.",
    )


class DriverOptions(GeneralOptions):
    """Options that the daemon opens a driver with.

    A board takes the smaller of `cells` and `max_bytes` and what it has, ignores `compute`, runs by itself and so
    refuses a stepped `clock`; `rate` is None where nobody asked for one.

    Attributes:
        settings: the driver's own options, given with ``--driver-option NAME=VALUE``.
    """

    settings: Mapping[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Capabilities:
    """Capabilities of a device.

    Attributes:
        name: name of the driver, as in its entry point.
        cells: max number of cells a program may use.
        max_bytes: max number of bytes of one program's tensors.
        features: names of the block kinds it takes, of the precisions narrower than float32 (which reach it decoded),
            and of optional abilities: ``"window"``, ``"state"``.
        tau: time constant in seconds of a device that has one of its own; None: the one it was opened with.
        clock_tolerance: how far the rate of the device's own clock may lie from this machine's, relative.
        halt_seconds: timeout of a halt, also while another call is under way, after which the driver is killed.
    """

    name: str
    cells: int
    max_bytes: int
    features: tuple[str, ...]
    tau: float | None = None
    clock_tolerance: float = 2e-4
    halt_seconds: float = 0.08


class Measured(NamedTuple):
    """A reading, from a device that cannot take it at the very time asked for.

    Attributes:
        value: the state, shape (N,).
        time: device time at which it was taken, in τ.
    """

    value: Tensor
    time: float


def measured(value: Tensor | Measured, at: float) -> Measured:
    """Return the result of `Driver.read` with its time, which is `at` unless the result has its own."""
    return value if isinstance(value, Measured) else Measured(value, at)


@dataclass(frozen=True)
class Saved:
    """The state of a device at one instant, as a driver knows it.

    Attributes:
        at: device time of the instant, in τ.
        program: the program in force, its start policy of no meaning; None without one.
        tensors: the driver's own tensors on the CPU, by name.
        facts: whatever else the driver must know: names and values that JSON can say.
    """

    at: float
    program: Program | None
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class Driver(ABC):
    """One device. The daemon calls these methods from one thread, in the order of device time.

    Attributes:
        interface: version of the interface that the driver was written for.
        announce: for the driver to call: "what I am doing now, a call or `prepare`, may take so many seconds from now".
            The daemon sets it once the device is open. A call that takes longer than ``--driver-deadline`` without an
            announcement, or longer than announced, is a hang.
    """

    interface: ClassVar[int] = 1
    announce: Callable[[float], None] = staticmethod(lambda seconds: None)

    @classmethod
    def discover(cls) -> Sequence[Mapping[str, str]]:
        """The devices of this kind that could be opened now: the `DriverOptions.settings` of each; an optional ability.

        It may ask around on this machine, and must leave alone what somebody uses.
        """
        return []

    @abstractmethod
    def __init__(self, options: DriverOptions) -> None:
        """Open the device; raise whatever stands in the way."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Capabilities of the device; constant while it is open."""

    @abstractmethod
    def stage(self, program: Program) -> None:
        """Stage a checked program while another runs, replacing one staged before. May be slow.

        The program's tensors stay valid, and unchanged, until the program is replaced. Where the client asks for a new
        drive, damping, noise or start alone, `program.operator` is the very object that the running program has: there
        is nothing to load for it again.

        Raises:
            InvalidProgram: when the device cannot run it.
        """

    def schedule(self, readings: Sequence[tuple[float, float]]) -> None:  # noqa: B027 - an optional ability
        """Learn which readings will be asked for under the staged program; called after `stage`.

        A device that runs by itself arms them now, because `read` comes when their time has passed. One whose
        state can be computed at any time need not listen.

        Args:
            readings: time after the commit and length of the average (0: the state itself) of each, in τ.

        Raises:
            InvalidProgram: when there are more than the device can take.
        """

    @abstractmethod
    def commit(self, at: float) -> None:
        """Apply the staged program at device time `at`, at one instant. Fast."""

    def prepare(self) -> None:  # noqa: B027 - an optional ability
        """Work ahead for the first reading; called after `commit` while nothing waits for the driver."""

    @abstractmethod
    def open_window(self, window: int, start: float) -> None:
        """Begin a time average, number `window`, at device time `start`. Several may be open at once."""

    @abstractmethod
    def close_window(self, window: int) -> None:
        """Forget a time average; one that is not open (any more) is no error."""

    @abstractmethod
    def read(self, at: float, window: int | None) -> Tensor | Measured:
        """State at device time `at`; shape (N,), dtype of the drive, memory of its own.

        With the number of an open window, the average from its start to `at` instead; the window is closed. A device
        that could not measure at `at` says when it did.
        """

    @abstractmethod
    def halt(self, at: float) -> None:
        """Stop at device time `at`: drop all programs, staged too, and discharge the cells."""

    def clock(self) -> float | None:
        """Seconds on the device's own clock, from any origin; None where it has none. Fast.

        The daemon compares it with this machine's, see `spu_server.drivers.watch`.
        """
        return None

    def self_test(self) -> str:
        """Let an idle device look at itself: what it found, in words; empty if nothing. No reading depends on it.

        The daemon asks whenever it has opened the device, and does not use one that finds something.
        """
        return ""

    def calibrate(self) -> None:  # noqa: B027 - an optional ability
        """Let an idle device measure and correct its own errors; raises when it cannot be made good.

        With ``spu-server serve --calibrate`` the daemon asks whenever it has opened the device.
        """

    def report(self) -> Mapping[str, float]:
        """Return counts and measurements since the device was opened, by name; counts never decrease. Fast."""
        return {}

    def save(self, at: float) -> Saved:
        """The state at device time `at`, not before the last event; optional, and named by the feature ``"state"``.

        Nothing moves and nothing is measured: whoever saves sees the same bits afterwards as who does not. Staged
        programs and open windows belong to calls under way and are left out.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot save its state")

    def restore(self, saved: Saved) -> None:
        """Stage a saved state while a program runs, replacing what was staged; optional, with `save`.

        `commit` applies it instead of a program: the cells then have, at its `at`, the values they had when it was
        saved, open windows are void, and all its device times are later by the difference of the two. Its program has
        been checked; tensors and facts are as good as who sent them.

        Raises:
            InvalidProgram: when they are not those of a state of this driver.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot restore a state")

    @abstractmethod
    def close(self) -> None:
        """Release the device."""
