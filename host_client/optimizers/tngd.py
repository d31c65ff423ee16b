"""Thermodynamic natural gradient descent: the linear system is solved by a device that relaxes towards its solution."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack, get_args
from weakref import finalize, ref

import torch
from torch import Tensor, nn

from host_client.curvature import Capture, Check, Criteria, GradScaler, Kind, trained_parameters
from host_client.curvature.hooks import WeakHook
from host_client.loop import Freshness, NoOlderThan, OnLoss, Schedule, TooStale
from host_client.loop.recovery import LOST
from host_client.optimizers.base import NaturalGradient
from host_client.optimizers.options import NaturalGradientOptions
from host_client.optimizers.ranges import COMMON, Ranges, at_least_zero, one_of
from host_client.optimizers.schedules import Scheduled
from host_client.optimizers.solvers.direct import solve_direct
from host_client.optimizers.solvers.kronecker_capture import KroneckerCapture
from host_client.optimizers.vectors import gradient_of, kept_vector, parts_of
from host_client.record.events import Differentiated, Event, Source, Updated
from spu_link.errors import SessionClosed, SpuError
from spu_link.operators import Operator
from spu_link.precision import PRECISIONS, Precision
from spu_link.program import Reading, StartPolicy

if TYPE_CHECKING:
    from host_client.blocking import Feed, Session
    from host_client.embeddings import Embedding
    from host_client.loop.arrivals import Arrived

log = logging.getLogger(__name__)

Combine = Literal["average", "each"]
"""What becomes of several readings: their average is one direction; or each one is, in turn."""


class TNGD(NaturalGradient):
    """Natural gradient descent with g̃ read from a stochastic processing unit (arXiv 2405.13817).

    The device's cells follow dx = −((F + λI) x − ∇ℓ) ds + √(2κ₀) dW, and g̃ is what is read from them. With start
    ``"drive"``, t = 0 is gradient descent and t → ∞ is natural gradient descent. Each step hands a program to the
    device, in the background, and goes along readings that are fresh enough: by default those of its own program, for
    which it waits. With ``freshness="newest"`` or a `NoOlderThan` the device works while the next gradient is computed.
    The curvature is sent ahead while the backward pass runs.

    Args:
        model: what is trained.
        criterion: the loss.
        session: the device, a session of ``host_client.connect``. With an embedding it may have fewer cells than there
            are parameters; under ``"kronecker"`` the curvature is that of `KFAC`, whose restrictions on model and
            criterion then hold here.
        analog_time: t ≥ 0, in units of the device's τ: how long a program runs before it is read.
        delay: t_d ≥ 0, in τ: least time between a reading and the moment the next program takes hold; the device goes
            on under the old one.
        noise: κ₀ ≥ 0.
        start: where the cells start: ``"keep"``, from ∇ℓ at the first step and then from where they stand, as in the
            paper; or ``"drive"``, always from ∇ℓ.
        precision: how the curvature travels to the device: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"int16"``,
            or None, as it is. 16 bits halve the upload; ``"int16"`` is the most accurate of them.
        readings: how many readings are taken under each program, the first after t.
        spacing: device time from one of them to the next, in τ.
        period: if given, readings are taken at the multiples of it in device time instead, in τ, whatever is uploaded
            when; a program then runs for at least t.
        combine: ``"average"``: g̃ is the average of the readings of the newest program, those scheduled with it once all
            of them have come; ``"each"``: every reading since the last step is a g̃, and the parameters go along one
            after the other.
        freshness: which readings a step may use, and so what it waits for: ``"this program"``, ``"newest"`` or
            `NoOlderThan`.
        on_loss: what a step does when the device is lost, at fault, held by another or too stale: ``"raise"``;
            ``"wait"`` until it is there again; ``"digital"``, solve the system here; ``"gradient"``, go along ∇ℓ. With
            all but the first the session is opened again as soon as that can be. A device that someone has halted
            stays so.
        patience: longest that a step waits for a reading, beyond the device time it takes, or for a lost device, in
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
        **dict.fromkeys(("analog_time", "delay", "noise", "spacing"), at_least_zero),
        "start": one_of(*get_args(StartPolicy)),
        "precision": one_of(*PRECISIONS, None),
    }

    def __init__(
        self,
        model: nn.Module,
        criterion: Criteria,
        session: Session,
        *,
        analog_time: Scheduled,
        delay: Scheduled = 0.0,
        noise: Scheduled = 0.0,
        start: StartPolicy = "keep",
        precision: Precision | None = None,
        readings: int = 1,
        spacing: Scheduled = 0.0,
        period: float | None = None,
        combine: Combine = "average",
        freshness: Freshness = "this program",
        on_loss: OnLoss = "raise",
        patience: float = 60.0,
        record: Callable[[Event], None] | None = None,
        **options: Unpack[NaturalGradientOptions],
    ) -> None:
        _check_one("combine", combine, get_args(Combine))
        _check_one("on_loss", on_loss, get_args(OnLoss))
        if not isinstance(freshness, NoOlderThan):
            _check_one("freshness", freshness, ("this program", "newest"), " or a NoOlderThan")
        if not (isinstance(readings, int) and readings >= 1):
            raise ValueError(f"Invalid readings: {readings}; it must be a whole number, at least 1")
        if period is not None and (not period > 0 or readings > 1):
            raise ValueError(f"Invalid period: {period} with readings={readings}; it must be above 0, with one reading")
        if isinstance(session, AbstractContextManager):
            raise TypeError(
                "Invalid session: one that has not been entered; write `with spu.session() as session:` around the "
                "training, or give spu.open_session() and close it yourself"
            )
        if session.embedding is not None:
            _check_embedding(session.embedding, readings, period)
        self._session: Session | None = None
        self._embedding = session.embedding
        self._ahead: ref[Operator] | None = None
        self._has_read = self._pending = False
        self._readings, self._period, self._combine, self._freshness = readings, period, combine, freshness
        self._on_loss, self._patience, self._record = on_loss, patience, record
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
        self._differentiating: float | None = None
        self._solved_at = 0.0
        self._updates: list[tuple[Source, tuple[int, ...], float | None]] = []
        if record is not None:
            handle = model.register_forward_pre_hook(WeakHook(self._forward))
            if self.capture is None:
                finalize(self, handle.remove)
            else:
                self.capture.own(handle)
        self.session = session

    def _capturing(
        self,
        model: nn.Module,
        criterion: Criteria,
        natural: Sequence[nn.Parameter],
        *,
        curvature: Kind,
        samples: int,
        grad_scaler: GradScaler | None,
        check: Check,
    ) -> Any:
        if self._embedding is not None and self._embedding.cell == "factor row":
            trained = trained_parameters(model, natural)
            return KroneckerCapture(model, criterion, trained, kind=curvature, draws=samples, grad_scaler=grad_scaler)
        return super()._capturing(
            model, criterion, natural, curvature=curvature, samples=samples, grad_scaler=grad_scaler, check=check
        )

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

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, and what has been sent ahead for them."""
        if self._ahead is not None and self.capture is not None:
            ahead = self._ahead()
            if any(one is ahead for one in self.capture.differentiated()):  # not if the backward pass is still to come
                self._abandon()
        super().zero_grad(set_to_none)

    def _kept(self, group: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[str, ...]:
        return super()._kept(group, whole) + (() if group["adam"] else ("reading",))

    def _further(self) -> dict[str, Any]:
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
        return {**super()._further(), "device": device}

    def _read(self, state_dict: Mapping[str, Any]) -> Callable[[], None]:
        place = super()._read(state_dict)

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
        if self.capture is not None and self.capture.differentiated():
            self._abandon()
            return
        self._ahead = ref(operator)
        self._feed.begin(operator, self.hyperparameters["precision"], copied=self._freshness != "this program")

    def _abandon(self) -> None:
        if self._ahead is not None:
            self._ahead = None
            self._feed.abandon()

    def _directions(self, operator: Operator | None, drive: Tensor) -> Iterable[Tensor]:
        if self._record is not None:
            ended = time.monotonic()
            self._record(Differentiated(self.steps + 1, self._differentiating or ended, ended))
            self._differentiating = None
        self._updates = []
        directions = self._found(operator is None, drive)
        self._solved_at = time.monotonic()
        return directions

    def _found(self, keep: bool, drive: Tensor) -> list[Tensor]:
        operator = self._operator
        assert operator is not None
        try:
            arrived = self._exchange(operator, drive, keep)
        except (*LOST, TooStale) as error:
            if self._on_loss in ("raise", "wait") or isinstance(error, SessionClosed):
                raise
            log.debug("a step without the device: %s", str(error))
            self.counts[self._on_loss] += 1
            if self._on_loss == "gradient":
                self._updates.append(("gradient", (), None))
                return [gradient_of(self._parameters)]
            self._updates.append(("digital", (), None))
            return [self._solved_here(operator, drive)]
        for one in arrived:
            self._check_finite("reading", one.reading.value)
        self._keep(arrived[-1].reading)
        if self._combine == "average":
            arrived = [one for one in arrived if one.program == arrived[-1].program]
        values = [one.reading.value for one in arrived]
        if self._combine == "average" and len(values) > 1:
            numbers = tuple(one.number for one in arrived)
            self._updates.append(("device", numbers, self._staleness(arrived[0].reading)))
            return [torch.stack(values).mean(0)]
        self._updates += [("device", (one.number,), self._staleness(one.reading)) for one in arrived]
        return values

    def _solved_here(self, operator: Operator, drive: Tensor) -> Tensor:
        """What the device would have come to, solved digitally."""
        damping, embedding = self.hyperparameters["damping"], self.session.embedding
        if embedding is None:
            return solve_direct(operator, drive, damping)
        from host_client.embeddings import solve_exactly  # which imports the solvers, and these this package

        return solve_exactly(embedding, operator, drive, damping)

    def _exchange(self, operator: Operator, drive: Tensor, keep: bool) -> list[Arrived]:
        self._ahead, self._pending = None, True
        group, deadline = self.hyperparameters, time.monotonic() + self._patience
        schedule = Schedule(group["analog_time"], self._readings, group["spacing"], group["delay"], self._period)
        rate = self.session.spu.rate
        programs = 1 if self._embedding is None else self._embedding.programs(operator)
        running = (schedule.delay + programs * schedule.length + (self._period or 0.0)) / rate if rate else 0.0
        while True:
            try:
                left = max(0.0, deadline - time.monotonic())
                return self._feed.exchange(
                    operator,
                    drive,
                    damping=group["damping"],
                    noise=group["noise"],
                    start=group["start"],
                    resume=self._last_value(),
                    schedule=schedule,
                    precision=group["precision"],
                    keep=keep,
                    copied=self._freshness != "this program",
                    freshness=self._freshness,
                    timeout=left + running,
                    together=self._combine == "average" and self._readings > 1,
                )
            except LOST as error:
                left = deadline - time.monotonic()
                if self._on_loss != "wait" or left <= 0.0 or isinstance(error, SessionClosed):
                    raise
                self.counts["waited"] += 1
                self._feed.back(left)

    def _keep(self, reading: Reading) -> None:
        self.last_reading, self._has_read = reading, True
        for parameter, part in parts_of(reading.value, [parameter for _, parameter in self._parameters]).items():
            self.state[parameter]["reading"] = part.clone()  # not a view into the whole

    def _last_value(self) -> Tensor | None:
        """The last reading, of this run or of the one that it goes on with."""
        if not self._has_read:
            return None
        return kept_vector("reading", [parameter for _, parameter in self._parameters], self.state)

    def _staleness(self, reading: Reading) -> float:
        """Device time since a reading, in τ."""
        return max(0.0, self.session.clock.device_time() - float(reading.time))

    def _forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._differentiating is None and module.training and torch.is_grad_enabled():
            self._differentiating = time.monotonic()

    def _taken(self, direction: Tensor | None) -> None:
        if self._record is not None:
            ended = time.monotonic()
            for source, readings, staleness in self._updates:
                self._record(Updated(self.steps + 1, self._solved_at, ended, readings, staleness, source))
        super()._taken(direction)
        self._pending = False


def _check_embedding(embedding: Embedding, readings: int, period: float | None) -> None:
    if period is not None and not embedding.single:
        raise ValueError(
            f"Invalid period: {period}; embedding {embedding.name!r} reads each part with its program, leave it out"
        )
    if readings > 1 and embedding.stages > 1:
        raise ValueError(f"Invalid readings: {readings}; embedding {embedding.name!r} takes 1, and goes on from it")


def _check_one(name: str, value: object, known: tuple[object, ...], more: str = "") -> None:
    if value not in known:
        raise ValueError(f"Invalid {name}: {value!r}; it must be one of {', '.join(map(repr, known))}{more}")
