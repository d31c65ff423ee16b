"""Thermodynamic natural gradient descent: the linear system is solved by a device that relaxes towards its solution."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack, get_args
from weakref import finalize, ref

import torch
from torch import Tensor, nn

from host_client.curvature import Capture, Check, Criteria
from host_client.curvature.base import BaseCapture, CaptureOptions
from host_client.curvature.hooks import WeakHook
from host_client.curvature.kronecker.capture import KroneckerCapture
from host_client.embeddings import Embedding, solve_exactly
from host_client.loop import Freshness, NoOlderThan, OnLoss, Sampling, TooStale
from host_client.loop.recovery import LOST
from host_client.optimizers.base import NaturalGradient
from host_client.optimizers.options import NaturalGradientOptions
from host_client.optimizers.ranges import AT_LEAST_ZERO, AUTO_OR_AT_LEAST_ZERO, COMMON, COUNT, Ranges, one_of
from host_client.optimizers.schedules import Scheduled
from host_client.optimizers.vectors import gradient_of, kept_vector, parts_of
from host_client.record.events import Differentiated, Event, Source, Updated
from host_client.solvers.direct import solve_direct
from host_client.solvers.settling import settling_time
from spu_link.errors import SessionClosed, SpuError
from spu_link.operators import Operator
from spu_link.precision import PRECISIONS, Precision
from spu_link.program import Program, Reading, StartPolicy

if TYPE_CHECKING:
    from host_client.blocking import Feed, Session
    from host_client.loop.arrivals import Arrived

log = logging.getLogger(__name__)

Combine = Literal["average", "each"]
"""How several readings are combined: their average is one direction; or each of them is a direction, in turn."""


class TNGD(NaturalGradient):
    """Natural gradient descent with g̃ read from a stochastic processing unit (arXiv 2405.13817).

    The device's cells follow dx = −((F + λI) x − ∇ℓ) ds + √(2κ₀) dW, and g̃ is what is read from them. With start
    ``"drive"``, t = 0 is gradient descent and t → ∞ is natural gradient descent. Each step submits a program to the
    device, in the background, and updates with readings that are fresh enough: by default those of its own program, for
    which it waits (a synchronous step). With ``freshness="newest"`` or a `NoOlderThan` the device works while the next
    gradient is computed (an asynchronous step). The curvature is sent ahead while the backward pass runs.

    Args:
        model: what is trained.
        criterion: the loss.
        session: the device, a session of ``host_client.connect``. With an embedding it may have fewer cells than there
            are parameters; under ``"kronecker"`` the curvature is that of `KFAC`, whose restrictions on model and
            criterion then hold here.
        analog_time: t ≥ 0, in units of the device's τ: how long a program runs before it is read. ``"auto"``: at each
            step, long enough for a reading to miss at most 1 % of the decrease of the quadratic model, see
            `settling_time`; for λ > 0, without an embedding.
        delay: t_d ≥ 0, in τ: min time between a reading and the moment the next program takes effect; the device goes
            on under the old one.
        noise: κ₀ ≥ 0.
        start: where the cells start: ``"keep"``, from ∇ℓ at the first step and then from their current state, as in the
            paper; or ``"drive"``, always from ∇ℓ.
        precision: how the curvature travels to the device: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"int16"``,
            or None, as it is. 16 bits halve the upload; ``"int16"`` is the most accurate of them.
        readings: how many readings are taken under each program, the first after t.
        spacing: device time from one of them to the next, in τ.
        period: if given, readings are taken at the multiples of it in device time instead, in τ, whatever is uploaded
            when; a program then runs for at least t.
        combine: ``"average"``: g̃ is the average of the readings of the newest program, those scheduled with it once all
            of them have come; ``"each"``: every reading since the last step is a g̃, and the parameters step along one
            after the other.
        freshness: which readings a step may use, and so what it waits for: ``"program"``, ``"newest"``, at most so many
            programs old, or `NoOlderThan`.
        on_loss: what a step does when the device is lost, has failed, is held by another or is too stale: ``"raise"``;
            ``"wait"`` until it has recovered; ``"digital"``, solve the system here; ``"gradient"``, update with ∇ℓ.
            With all but the first the session is opened again as soon as that can be. A device that someone has halted
            stays so.
        timeout: max wait of a step for a reading, beyond the device time it takes, or for a lost device, in
            seconds.
        record: called with each event: uploads, readings, differentiation, updates, losses; see `host_client.record`.
        options: see `NaturalGradient`.

    Raises:
        UnsupportedLayer, UnsupportedCriterion: for a model or loss whose curvature is not known.
        ValueError: for an argument out of its range.
        TypeError: for a session that has not been entered.

    Note:
        The state dictionary holds the last reading, and the device's state if the device can save it: on a stepped
        emulator 2k steps are, bit for bit, k steps, ``state_dict``, ``load_state_dict`` and k steps, in another process
        and on another daemon too. It may be large: the program that the device goes on under is part of it. Where the
        device's state is not restored, or when `session` is replaced, what the device holds says nothing about this
        run, so with ``start="keep"`` the next program starts from the last reading. The device's state is not saved
        after a step that failed, since the device may hold the program of that step.

    Attributes:
        last_reading: the newest reading used; None before the first one of this session.
    """

    ranges: ClassVar[Ranges] = {
        **COMMON,
        **dict.fromkeys(("delay", "noise", "spacing"), AT_LEAST_ZERO),
        "analog_time": AUTO_OR_AT_LEAST_ZERO,
        "start": one_of(*get_args(StartPolicy)),
        "precision": one_of(*PRECISIONS, None),
    }

    def __init__(
        self,
        model: nn.Module,
        criterion: Criteria,
        session: Session,
        *,
        analog_time: Scheduled | Literal["auto"],
        delay: Scheduled = 0.0,
        noise: Scheduled = 0.0,
        start: StartPolicy = "keep",
        precision: Precision | None = None,
        readings: int = 1,
        spacing: Scheduled = 0.0,
        period: float | None = None,
        combine: Combine = "average",
        freshness: Freshness | int = "program",
        on_loss: OnLoss = "raise",
        timeout: float = 60.0,
        record: Callable[[Event], None] | None = None,
        **options: Unpack[NaturalGradientOptions],
    ) -> None:
        one_of(*get_args(Combine)).check("combine", combine)
        one_of(*get_args(OnLoss)).check("on_loss", on_loss)
        if isinstance(freshness, int):
            freshness = NoOlderThan(programs=freshness)
        if not isinstance(freshness, NoOlderThan) and freshness not in ("program", "newest"):
            raise ValueError(
                f"Invalid freshness: {freshness!r}; it must be 'program', 'newest', a number of programs or a "
                "NoOlderThan"
            )
        COUNT.check("readings", readings)
        if period is not None and (not period > 0 or readings > 1):
            raise ValueError(f"Invalid period: {period} with readings={readings}; it must be above 0, with one reading")
        if isinstance(session, AbstractContextManager):
            raise TypeError(
                "Invalid session: one that has not been entered; write `with spu.session() as session:` around the "
                "training, or give spu.open_session() and close it yourself"
            )
        if session.embedding is not None:
            _check_embedding(session.embedding, analog_time, readings, period)
        self._session: Session | None = None
        self._embedding = session.embedding
        self._ahead: ref[Operator] | None = None
        self._has_read = False  # whether the state holds a reading, of this run or of the one that it goes on with
        self._pending = False  # whether the device may hold the program of a step that failed
        self._copied = (
            freshness != "program"
        )  # a step may end before its operator, which shares memory with the batch, is sent
        self._readings, self._period, self._combine, self._freshness = readings, period, combine, freshness
        self._on_loss, self._timeout, self._record = on_loss, timeout, record
        super().__init__(
            model,
            criterion,
            analog_time=analog_time,
            delay=delay,
            noise=noise,
            spacing=spacing,
            start=start,
            precision=precision,
            **options,
        )
        self._forward_began: float | None = None
        self._solved_at = 0.0
        self._updates: list[tuple[Source, tuple[int, ...], float | None]] = []
        if record is not None:
            handle = model.register_forward_pre_hook(WeakHook(self._note_forward))
            if self.capture is None:
                finalize(self, handle.remove)
            else:
                self.capture.own(handle)
        self.session = session

    def _make_capture(
        self, model: nn.Module, criterion: Criteria, check: Check, **options: Unpack[CaptureOptions]
    ) -> BaseCapture:
        if self._embedding is not None and self._embedding.cell == "factor row":
            return KroneckerCapture(model, criterion, **options)
        return super()._make_capture(model, criterion, check, **options)

    def _options(self) -> dict[str, Any]:
        names = ("readings", "period", "combine", "freshness", "on_loss", "timeout")
        return super()._options() | {name: getattr(self, f"_{name}") for name in names}

    @property
    def session(self) -> Session:
        """The device; may be replaced, for instance after a session has expired."""
        assert self._session is not None
        return self._session

    @session.setter
    def session(self, session: Session) -> None:
        if type(session.embedding) is not type(self._embedding):
            raise ValueError(f"Invalid session: embedding {session.embedding}; it must be {self._embedding}, as before")
        if self._session is not None:
            self._feed.close()
        self._session = session
        self._feed: Feed = session.feed(on_loss=self._on_loss, record=self._record, counts=self.counts)
        self.last_reading: Reading | None = None
        if isinstance(self.capture, Capture):
            precision = self.hyperparameters["precision"]
            itemsize = None if precision is None else PRECISIONS[precision].itemsize
            self.capture.bound_for(session.capacity, itemsize=itemsize)

    def close(self) -> None:
        """Remove the hooks, and break off what is on its way to the device; the session stays open."""
        super().close()
        self._feed.close()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, and what has been sent ahead for them."""
        if self._ahead is not None and isinstance(self.capture, Capture):
            ahead = self._ahead()
            # Not if the backward pass is still to come.
            if any(operator is ahead for operator in self.capture.differentiated()):
                self._abandon()
        super().zero_grad(set_to_none)

    def _state_names(self, group: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[str, ...]:
        return super()._state_names(group, whole) + (() if group["adam"] else ("reading",))

    def _extra_state(self) -> dict[str, Any]:
        """Return the device's state too, if it can save it."""
        device: dict[str, Any] = {"state": None, "free_from": None}
        # After a step that failed the cells may be under its program, which is no part of this run.
        if self._feed.free_from is not None and not self._pending and "state" in self.session.spu.features:
            try:
                state = self.session.save_state()
            except SpuError as error:
                log.warning("the device's state is not saved: %s", str(error))
            else:
                device["state"] = torch.frombuffer(bytearray(state), dtype=torch.uint8)
                device["free_from"] = float(self._feed.free_from)
        return {**super()._extra_state(), "device": device}

    def _read_extra_state(self, state_dict: Mapping[str, Any]) -> Callable[[], None]:
        place = super()._read_extra_state(state_dict)

        def place_both() -> None:
            place()
            self._resume(state_dict.get("device") or {})

        return place_both

    def _resume(self, device: Mapping[str, Any]) -> None:
        """Go on with the device where it was; one that cannot, being of another kind, starts from the last reading."""
        self.last_reading, self._pending = None, False
        self._has_read = any(bool(self.state[p]["reading"].any()) for _, p in self._parameters)
        self._feed.close()
        self._feed = self.session.feed(on_loss=self._on_loss, record=self._record, counts=self.counts)
        if device.get("state") is None:
            return
        try:
            restored = self.session.restore_state(device["state"].cpu().numpy().tobytes())
        except SpuError as error:
            log.warning("the device's state is not restored, the cells start from the last reading: %s", str(error))
        else:
            self._feed.resume(device["free_from"] + restored.shift, self._operator, restored.sequence)

    def _on_operator(self, operator: Operator) -> None:
        """Send the operator while the backward pass runs, unless it will be one of several that the step needs."""
        if isinstance(self.capture, Capture) and self.capture.differentiated():
            self._abandon()
            return
        self._ahead = ref(operator)
        self._feed.begin(operator, self.hyperparameters["precision"], copied=self._copied)

    def _abandon(self) -> None:
        if self._ahead is not None:
            self._ahead = None
            self._feed.abandon()

    def _directions(self, operator: Operator | None, drive: Tensor) -> Iterable[Tensor]:
        if self._record is not None:
            ended = time.monotonic()
            self._record(Differentiated(self.steps + 1, self._forward_began or ended, ended))
            self._forward_began = None
        self._updates = []
        directions = self._solve_on_device(operator is None, drive)
        self._solved_at = time.monotonic()
        return directions

    def _solve_on_device(self, unchanged: bool, drive: Tensor) -> list[Tensor]:
        """Return the directions that are read from the device or, without it, the one that `on_loss` asks for."""
        operator = self._operator
        assert operator is not None
        try:
            arrived = self._exchange(operator, drive, unchanged)
        except (*LOST, TooStale) as error:
            if self._on_loss in ("raise", "wait") or isinstance(error, SessionClosed):
                raise
            log.debug("a step without the device: %s", str(error))
            self.counts[self._on_loss] += 1
            if self._on_loss == "gradient":
                self._updates.append(("gradient", (), None))
                return [gradient_of(self._parameters)]
            self._updates.append(("digital", (), None))
            return [self._solve_here(operator, drive)]
        for arrival in arrived:
            self._check_finite("reading", arrival.reading.value)
        self._keep_reading(arrived[-1].reading)
        groups = [[arrival] for arrival in arrived]
        if self._combine == "average":
            groups = [[arrival for arrival in arrived if arrival.program == arrived[-1].program]]
        for group in groups:
            numbers = tuple(arrival.number for arrival in group)
            self._updates.append(("device", numbers, self._staleness(group[0].reading)))
        return [_mean([arrival.reading.value for arrival in group]) for group in groups]

    def _solve_here(self, operator: Operator, drive: Tensor) -> Tensor:
        """Return the solution that the device approximates, computed digitally."""
        damping, embedding = self.hyperparameters["damping"], self.session.embedding
        if embedding is None:
            return solve_direct(operator, drive, damping)[0]
        return solve_exactly(embedding, operator, drive, damping)

    def _exchange(self, operator: Operator, drive: Tensor, unchanged: bool) -> list[Arrived]:
        """Submit the program of this step and return the readings for it; again after each loss that may be waited for.

        Raises:
            SpuError, TooStale: as of `Feed.readings`.
        """
        self._ahead, self._pending = None, True
        group, deadline = self.hyperparameters, time.monotonic() + self._timeout
        program = Program(
            operator,
            drive,
            damping=group["damping"],
            noise=group["noise"],
            start=group["start"],
            precision=group["precision"],
        )
        analog_time = group["analog_time"]
        if analog_time == "auto":
            start = self._last_value() if group["start"] == "keep" else None
            analog_time = settling_time(operator, drive, group["damping"], start)
        sampling = Sampling(analog_time, self._readings, group["spacing"], group["delay"], self._period)
        rate = self.session.spu.rate
        programs = 1 if self._embedding is None else self._embedding.programs(operator)
        device_time = sampling.delay + programs * sampling.length + (self._period or 0.0)
        running = device_time / rate if rate else 0.0  # seconds; a stepped clock has no rate
        while True:
            try:
                left = max(0.0, deadline - time.monotonic())
                return self._feed.exchange(
                    program,
                    sampling,
                    resume=self._last_value(),
                    unchanged=unchanged,
                    copied=self._copied,
                    freshness=self._freshness,
                    timeout=left + running,
                    together=self._combine == "average" and self._readings > 1,
                )
            except LOST as error:
                left = deadline - time.monotonic()
                if self._on_loss != "wait" or left <= 0.0 or isinstance(error, SessionClosed):
                    raise
                self.counts["waited"] += 1
                self._feed.wait_back(left)

    def _keep_reading(self, reading: Reading) -> None:
        self.last_reading, self._has_read = reading, True
        for parameter, part in parts_of(reading.value, [parameter for _, parameter in self._parameters]).items():
            self.state[parameter]["reading"] = part.clone()  # not a view into the whole

    def _last_value(self) -> Tensor | None:
        """Return the last reading, shape (N,); None if there was none in this run or the one that it goes on with."""
        if not self._has_read:
            return None
        return kept_vector("reading", [parameter for _, parameter in self._parameters], self.state)

    def _staleness(self, reading: Reading) -> float:
        """Return the device time since a reading, in τ."""
        return max(0.0, self.session.clock.device_time() - float(reading.time))

    def _note_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._forward_began is None and module.training and torch.is_grad_enabled():
            self._forward_began = time.monotonic()

    def _finish_step(self, direction: Tensor | None) -> None:
        if self._record is not None:
            ended = time.monotonic()
            for source, readings, staleness in self._updates:
                self._record(Updated(self.steps + 1, self._solved_at, ended, readings, staleness, source))
        super()._finish_step(direction)
        self._pending = False


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)  # no copy of a single one


def _check_embedding(embedding: Embedding, analog_time: object, readings: int, period: float | None) -> None:
    if analog_time == "auto":
        raise ValueError(
            f"Invalid analog_time: 'auto'; with embedding {embedding.name!r}, whose programs have spectra of their "
            "own, it must be a number or a schedule"
        )
    if period is not None and not embedding.single:
        raise ValueError(
            f"Invalid period: {period}; with embedding {embedding.name!r}, which reads each part once, it must be None"
        )
    if readings > 1 and embedding.stages > 1:
        raise ValueError(
            f"Invalid readings: {readings}; with embedding {embedding.name!r}, whose next stage needs the reading of "
            "the one before, it must be 1"
        )
