"""A loop of host, link and device, simulated: what a run would record, without a network or a device."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import count

from host_client.record import (
    ClockAgreed,
    DeviceBack,
    DeviceLost,
    Differentiated,
    Event,
    Read,
    Record,
    Updated,
    Uploaded,
)


@dataclass
class FreeRunning:
    """An overlapped loop: uploads in the background, one in flight, one waiting; scheduled readings, newest used.

    Durations are in seconds of host time but for those named otherwise, and vary by `jitter` of themselves.
    """

    steps: int = 12
    differentiation: float = 0.034
    update: float = 0.003
    upload: float = 0.022
    reply: float = 0.004
    rate: float = 1000.0
    drift: float = 1e-5
    error: float = 1e-4
    analog_time: float = 14.0
    readings: int = 1
    jitter: float = 0.15
    lost_after: int | None = None
    away: float = 0.12
    seed: int = 0

    def record(self) -> Record:
        """Return the record of the run."""
        return Record({"format": 1, "device": {"driver": "simulation", "clock": "free"}}, tuple(self.events()))

    def events(self) -> list[Event]:
        """In the order in which they would be recorded."""
        self._random = random.Random(self.seed)
        self._timed: list[tuple[float, Event]] = []
        self.zero, self._epoch = 1000.0 - 5.0, 7
        self._flight: tuple[int, int, float, float] | None = None  # upload, step, began, ends
        self._waiting: tuple[int, int, float] | None = None  # upload, step, time of submission
        self._sequence = self._uploads = 0
        self._reads: list[Read] = []
        self._numbers = count(1)
        now = 1000.0
        self._agree(now)
        for step in range(1, self.steps + 1):
            if step == self.lost_after:
                now = self._lose(now)
            began, now = now, now + self._about(self.differentiation)
            self._note(now, Differentiated(step, began, now))
            self._submit(step, now)
            self._fly(now)
            now = self._update(step, now)
            self._agree(now)
        return [event for _, event in sorted(self._timed, key=lambda timed: timed[0])]

    def _about(self, seconds: float) -> float:
        return seconds * (1.0 + self.jitter * self._random.uniform(-1.0, 1.0))

    def _device(self, host: float) -> float:
        return (host - self.zero) * self.rate * (1.0 + self.drift)

    def _note(self, host: float, event: Event) -> None:
        self._timed.append((host, event))

    def _agree(self, host: float) -> None:
        seen = host + self._random.uniform(-self.error, self.error)
        self._note(host, ClockAgreed(seen, self._device(host), self._epoch, self.rate, self.error))

    def _submit(self, step: int, now: float) -> None:
        self._fly(now)
        self._uploads += 1
        if self._flight is None:
            self._flight = (self._uploads, step, now, now + self._about(self.upload))
            return
        if self._waiting is not None:
            number, old, submitted = self._waiting
            dropped = Uploaded(number, submitted, now, "dropped", None, None, None, 0, None, False, old)
            self._note(now, dropped)
        self._waiting = (self._uploads, step, now)

    def _fly(self, now: float) -> None:
        """Remove what has taken effect by now, and send what waits."""
        while self._flight is not None and self._flight[3] <= now:
            number, step, began, ends = self._flight
            self._sequence += 1
            held = self._device(ends)
            self._note(
                ends + 1e-4,
                Uploaded(
                    number,
                    began,
                    ends + 1e-4,
                    "took effect",
                    self._epoch,
                    self._sequence,
                    held,
                    5_800_000,
                    "grpc",
                    False,
                    step,
                ),
            )
            for number in range(1, self.readings + 1):
                asked = held + number * self.analog_time
                sent = asked + 1e-4 * self.rate
                received = self.zero + sent / (self.rate * (1.0 + self.drift)) + self._about(self.reply)
                self._reads.append(
                    Read(
                        next(self._numbers),
                        self._epoch,
                        self._sequence,
                        asked,
                        asked,
                        asked - held,
                        0.0,
                        sent,
                        received,
                    )
                )
                self._note(received, self._reads[-1])
            self._flight = None
            if self._waiting is not None:
                number, step, _ = self._waiting
                self._waiting, self._flight = None, (number, step, ends + 2e-4, ends + self._about(self.upload))

    def _update(self, step: int, now: float) -> float:
        began, now = now, now + self._about(self.update)
        arrived = [read for read in self._reads if read.received <= began and read.epoch == self._epoch]
        if arrived:
            newest = max(arrived, key=lambda read: read.time)
            self._note(now, Updated(step, began, now, (newest.number,), self._device(began) - newest.time, "device"))
        else:
            self._note(now, Updated(step, began, now, (), None, "gradient"))
        return now

    def _lose(self, now: float) -> float:
        self._fly(now)
        if self._flight is not None:
            number, step, began, _ = self._flight
            began = min(began, now)  # what is lost on the point of being sent fails then
            self._note(now, Uploaded(number, began, now, "failed", None, None, None, 0, "grpc", False, step))
        self._flight = self._waiting = None
        self._timed = [timed for timed in self._timed if timed[0] <= now]
        self._reads = [read for read in self._reads if read.received <= now]
        self._note(now, DeviceLost(now, "the connection broke", "wait"))
        now += self.away
        self.zero, self._epoch = now - 1.0, self._epoch + 1
        self._sequence = 0
        self._note(now, DeviceBack(now, self._epoch))
        self._agree(now)
        return now


@dataclass(frozen=True)
class Stepped:
    """The paper's loop with exact analog time and delay: device time moves only by `advance`."""

    steps: int = 8
    analog_time: float = 50.0
    delay: float = 10.0

    def record(self) -> Record:
        """Return the record of the run."""
        return Record({"format": 1, "device": {"driver": "simulation", "clock": "stepped"}}, tuple(self.events()))

    def events(self) -> list[Event]:
        """In the order in which they are recorded."""
        host, device = 50.0, 0.0
        events: list[Event] = [ClockAgreed(host, device, 0, 0.0, 0.0)]
        for step in range(1, self.steps + 1):
            events.append(Differentiated(step, host, host + 0.03))
            held = device + (self.delay if step > 1 else 0.0)
            device = held + self.analog_time
            events.append(
                Uploaded(step, host + 0.03, host + 0.05, "took effect", 0, step, held, 1000, "in-process", False, step)
            )
            events.append(Read(step, 0, step, device, device, self.analog_time, 0.0, device, host + 0.06))
            events.append(Updated(step, host + 0.06, host + 0.061, (step,), 0.0, "device"))
            host += 0.062
        return events


@dataclass(frozen=True)
class Emulated:
    """A loop through a free-running emulator, which computes each reading after its time, by a record of its header.

    Args:
        age: steps from the one whose program was read to the one that uses the reading; 0: each waits for its own.
        error: by which device times are placed too early.
    """

    steps: int = 10
    age: int = 0
    differentiation: float = 0.03
    upload: float = 0.005
    computing: float = 0.04
    analog_time: float = 50.0
    rate: float = 1e6
    error: float = 0.0
    driver: str = "emulator"

    def record(self) -> Record:
        """Return the record of the run."""
        return Record({"format": 3, "device": {"driver": self.driver, "clock": "free"}}, tuple(self.events()))

    def events(self) -> list[Event]:
        """In the order in which they are recorded."""
        events: list[Event] = [ClockAgreed(self.error, 0.0, 1, self.rate, self.error)]
        now, arrivals = 1.0, {}
        for step in range(1, self.steps + 1):
            differentiated = now + self.differentiation
            held = max(differentiated, arrivals.get(step - 1, 0.0)) + self.upload
            measured = held + self.analog_time / self.rate
            arrivals[step] = measured + self.computing
            events.append(Differentiated(step, now, differentiated))
            device = held * self.rate
            events.append(Uploaded(step, differentiated, held, "took effect", 1, step, device, 1000, "grpc", False))
            times = [measured * self.rate, self.analog_time, 0.0, arrivals[step] * self.rate]
            events.append(Read(step, 1, step, None, *times, arrivals[step] + 1e-3))
            used = step - self.age
            now = max(differentiated, arrivals.get(used, 0.0) + 1e-3)
            if used >= 1:
                events.append(Updated(step, now, now + 1e-3, (used,), 0.0, "device"))
            now += 1e-3
        return events
