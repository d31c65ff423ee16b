"""A device in software: the cells' stochastic differential equation, integrated exactly from event to event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from spu_link.errors import NoProgram, ReadInPast, Unsupported
from spu_link.precision import NARROW
from spu_link.program import Program
from spu_server.drivers.base import Capabilities, Driver, DriverOptions, Saved
from spu_server.drivers.snapshot import Facts, Snapshot, tensors_of
from spu_server.dynamics import Motion, Transition, motion_of
from spu_server.dynamics.effort import max_seconds
from spu_server.dynamics.transition import Progress, Step
from spu_server.timing import Ledger, Timing

KINDS = ("dense", "rows", "linear", "conv2d", "embedding")
"""Block kinds the emulator takes: all there are."""

FEATURES = (*KINDS, *NARROW.values(), "window")
"""With the precisions narrower than float32, and time averages."""


def check_compute(compute: str) -> None:
    """Check that torch finds the device that `compute` names.

    Raises:
        ValueError: when it does not; with what it finds instead.
    """
    wanted = torch.device(compute)
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted.type == "cpu" or (here is not None and wanted.type == here.type):
        return
    available = "no accelerator" if here is None else f"only {here.type}"
    raise ValueError(f"compute is {compute!r}, but torch {torch.__version__} finds {available} here")


@dataclass(frozen=True)
class _Loaded:
    """A program, how the cells move under it, and how long a step of theirs may take, in seconds."""

    program: Program
    motion: Motion
    seconds: float


@dataclass(frozen=True)
class _Ahead:
    """A step computed before its time.

    Attributes:
        at: device time at its end, in τ.
        step: state of the cells then.
        transition: a fork of the running one, which has taken the step.
        generator: state of the random numbers after it.
    """

    at: float
    step: Step
    transition: Transition
    generator: Tensor


@dataclass
class _Window:
    """An open time average: ∫ x ds since `start`, None at first; `broken` once the cells are not the same."""

    start: float
    integral: Tensor | None = None
    broken: bool = False

    def add(self, integral: Tensor) -> None:
        self.integral = integral if self.integral is None else self.integral.to(integral.device) + integral


class Emulator(Driver):
    """Holds the state of every cell at one device time, and moves it only when something happens.

    Between two events the motion is exact (`spu_server.dynamics`), so a reading depends on the events and the seed
    alone, not on when the process got the processor. Where κ₀ > 0, noise is drawn once an interval, and twice while a
    window is open.

    Attributes:
        time: device time of the last event, in τ.
    """

    def __init__(self, options: DriverOptions) -> None:
        if options.settings and type(self) is Emulator:
            names = ", ".join(options.settings)
            raise ValueError(f"the emulator has no options of its own, but was given {names}; the driver analog has")
        check_compute(options.compute)
        self.time = 0.0
        self._options = options
        self._compute = torch.device(options.compute)
        self._generator = torch.Generator(self._compute).manual_seed(options.seed)
        self._staged: _Loaded | Snapshot | None = None
        self._running: _Loaded | None = None
        self._state: Tensor | None = None  # None while every cell is discharged.
        self._windows: dict[int, _Window] = {}
        self._readings: Sequence[tuple[float, float]] = ()  # of the staged program
        self._due: float | None = None
        self._ahead: _Ahead | None = None
        self._ledger = Ledger(Timing(), options.tau)

    @classmethod
    def discover(cls) -> list[dict[str, str]]:
        """One, wherever this runs."""
        return [{}]

    @property
    def capabilities(self) -> Capabilities:
        """As many cells and bytes as the options allow, every block kind and precision, windows, and its state."""
        return Capabilities("emulator", self._options.cells, self._options.max_bytes, (*FEATURES, "state"))

    def stage(self, program: Program, motion: Motion | None = None) -> None:
        """Stage a program; the work on it begins after `commit`. What is known of the running operator is kept.

        Args:
            program: what to run.
            motion: how the cells move under it, where that is not what the program says.
        """
        running = self._running
        former = running.motion if running and running.program.operator is program.operator else None
        if motion is None:
            motion = motion_of(program, self._compute, former)
        self._ledger.upload(program, kept=former is not None)
        self._staged = self._load(program, motion)

    def schedule(self, readings: Sequence[tuple[float, float]]) -> None:
        """Learn when the cells will be looked at, so that `prepare` can work it out before that."""
        self._readings = readings

    def commit(self, at: float) -> None:
        """Apply the staged program, or the saved state, at `at`.

        With the start policy ``"keep"``, or an open window, the cells first move to `at` under the old program;
        otherwise nothing is computed.

        Raises:
            NoProgram: when none is staged.
            ReadInPast: when `at` is before the last event.
        """
        if self._staged is None:
            raise NoProgram("no program is staged", field="program")
        if isinstance(self._staged, Snapshot):
            self._check_not_past(at)
            self._apply_snapshot(self._staged, at)
            return
        program, motion = self._staged.program, self._staged.motion
        if program.start == "keep" or self._windows:
            self._move(at)
        else:
            self._check_not_past(at)
            self.time, self._ahead = at, None
        if self._running is not None and self._running.program.cells != program.cells:
            for window in self._windows.values():
                window.broken, window.integral = True, None
        self._state = self._start_state(program, motion.drive)
        self._running, self._staged = self._staged, None
        self._ledger.run(program.operator, at)
        # In the order in which the daemon adds them up, to the bit.
        self._due = min(
            (at + after - window if window else at + after for after, window in self._readings), default=None
        )
        self._readings = ()

    def limit(self, largest: float) -> int:
        """Clamp every cell's state to ±`largest`, as a supply's rails do; return how many cells were beyond."""
        if self._state is None:
            return 0
        beyond = int((self._state.abs() > largest).sum())
        if beyond:
            self._ahead = None
            self._state = self._state.clamp(-largest, largest)
        return beyond

    def prepare(self) -> None:
        """Compute what every step under the running program needs, and the step to the first reading that is due.

        That step takes effect at its time; where another event comes first, it is dropped and changes no bit.
        """
        if self._running is None:
            return
        motion = self._running.motion
        self.announce(2.0 * self._running.seconds)
        motion.prepare()
        if self._due is None or self._due <= self.time or self._windows or not isinstance(motion, Transition):
            return
        fork, generator = motion.fork(), torch.Generator(self._compute)
        generator.set_state(self._generator.get_state())
        step = fork.step(self._state, self._due - self.time, partial(self._draw_normal, generator))
        self._ahead = _Ahead(self._due, step, fork, generator.get_state())

    def open_window(self, window: int, start: float) -> None:
        """Begin a time average, number `window`, at `start`.

        Raises:
            NoProgram: before the first program, and after a halt.
            ReadInPast: when `start` is before the last event.
        """
        self._running_program()
        self._move(start)
        self._windows[window] = _Window(start)

    def close_window(self, window: int) -> None:
        """Forget a time average, if it is open."""
        self._windows.pop(window, None)

    def read(self, at: float, window: int | None) -> Tensor:
        """State at `at`, or its average since the window's start; a fresh tensor.

        Raises:
            NoProgram: before the first program, and after a halt.
            ReadInPast: when `at` is before the last event, when the window is not open, or when the number of cells has
                changed since it began.
        """
        program = self._running_program()
        self._move(at)
        self._ledger.read(program.cells, at)
        value = self._state if window is None else self._average(at, window)
        if value is None:
            return torch.zeros_like(program.drive)
        return value.to("cpu", program.drive.dtype, copy=True)

    def save(self, at: float) -> Saved:
        """Return the state at `at`. The cells stay at the last event: a step more would change later bits and noise."""
        program, progress, at_drive = None, Progress(0, False), False
        if self._running is not None:
            program, motion = self._running.program, self._running.motion
            if not isinstance(motion, Transition):
                raise Unsupported(f"motion by {type(motion).__name__} cannot be saved", field="state")
            progress, at_drive = motion.progress(self._state), self._state is motion.drive
        facts = Facts(
            compute=self._compute.type,
            time=self.time,
            at_drive=at_drive,
            steps=progress.steps,
            decomposed=progress.decomposed,
        )
        return Saved(at, program, tensors_of(self._generator, self._state, progress, at_drive), facts.model_dump())

    def restore(self, saved: Saved) -> None:
        """Stage a saved state; `commit` applies it.

        Raises:
            InvalidProgram: when it is not a state of an emulator that computes where this one does.
        """
        self._staged = Snapshot(saved, self._compute)

    def report(self) -> dict[str, float]:
        """Return what a device of the paper would have needed for the same: the entries of `Timing`'s ``Ledger``."""
        return dict(self._ledger.numbers)

    def halt(self, at: float) -> None:
        """Drop all programs and windows and discharge the cells."""
        self.time = max(self.time, at)
        self.close()

    def close(self) -> None:
        """Release every tensor."""
        self._staged = self._running = self._state = self._ahead = self._due = None
        self._windows.clear()

    def _running_program(self) -> Program:
        if self._running is None:
            raise NoProgram("no program has taken effect since the device was opened or halted", field="program")
        return self._running.program

    def _start_state(self, program: Program, drive: Tensor) -> Tensor | None:
        """Return the state that `program` starts from, where its `drive` is; None while every cell is discharged."""
        if isinstance(program.start, Tensor):
            return program.start.to(drive.device, torch.float64, copy=True)
        if program.start == "drive":
            return drive
        kept = self._state
        if kept is not None and len(kept) != program.cells:
            kept = torch.nn.functional.pad(kept, (0, program.cells - len(kept)))  # new cells are discharged
        return None if kept is None else kept.to(drive.device)

    def _load(self, program: Program, motion: Motion) -> _Loaded:
        return _Loaded(program, motion, max_seconds(program.operator, self._compute.type))

    def _apply_snapshot(self, snapshot: Snapshot, at: float) -> None:
        """Replace program, cells, random numbers and time by those of a snapshot, and break off every window."""
        program, transition = snapshot.saved.program, snapshot.transition
        if program is not None:
            self._ledger.run(program.operator, at)
        self._running = self._load(program, transition) if program and transition else None
        self._state = snapshot.state
        self._generator.set_state(snapshot.generator)
        self.time = snapshot.facts.time + (at - snapshot.saved.at)
        self._staged = self._ahead = self._due = None
        for window in self._windows.values():
            window.broken, window.integral = True, None

    def _check_not_past(self, at: float) -> None:
        if at < self.time:
            raise ReadInPast(
                f"device time {at} τ has passed; the cells stand at {self.time} τ",
                field="at",
                found=at,
                expected=f"at least {self.time}",
            )

    def _move(self, at: float) -> None:
        """Let the cells move to `at`, and every open window with them."""
        self._check_not_past(at)
        ahead, self._ahead = self._ahead, None
        if self._running is not None and at > self.time:
            windows = [window for window in self._windows.values() if not window.broken]
            motion = self._running.motion
            self.announce(self._running.seconds)
            if ahead is not None and ahead.at == at and not windows:
                assert isinstance(motion, Transition)
                motion.adopt(ahead.transition)
                self._generator.set_state(ahead.generator)
                step = ahead.step
            else:
                normal = partial(self._draw_normal, self._generator)
                step = motion.step(self._state, at - self.time, normal, integral=bool(windows))
            self._state = step.state
            if step.integral is not None:
                for window in windows:
                    window.add(step.integral)
        self.time = at

    def _draw_normal(self, generator: torch.Generator) -> Tensor:
        assert self._running is not None
        drawn = torch.randn(self._running.program.cells, dtype=torch.float64, generator=generator, device=self._compute)
        return drawn.to(self._running.motion.drive.device)

    def _average(self, at: float, number: int) -> Tensor | None:
        """Close a window and return its average, which over no time at all is the state."""
        window = self._windows.pop(number, None)
        if window is None:
            raise ReadInPast(f"window {number} is not open", field="window", found=number, expected="an open window")
        if window.broken:
            raise ReadInPast(
                f"the number of cells has changed, or a state was restored, since the window began at {window.start} "
                f"τ: there is no average",
                field="window",
                found=window.start,
                expected="a window under programs of one size, without a state restored meanwhile",
            )
        return self._state if window.integral is None else window.integral / (at - window.start)
