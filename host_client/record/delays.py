"""The paper's delay t_d, measured from the events of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

from host_client.record.events import Event, Read, Updated, Uploaded


def measure_delays(uploads: Iterable[Uploaded], used: Iterable[Read]) -> list[float]:
    """Return the device time from the last reading used under each program to the next program taking effect, in τ.

    On a free clock it is the time of the whole loop (transfer, an emulator's computing, differentiation), whatever
    delay was asked for; that one is a lower bound. Device times of two epochs are not compared.

    Args:
        uploads: of the run; those that did not take effect do not matter.
        used: readings that updates used.
    """
    last: dict[tuple[int, int], float] = {}
    for read in used:
        program = read.epoch, read.sequence
        last[program] = max(read.time, last.get(program, read.time))
    programs = sorted(
        (upload.epoch, upload.took_effect, upload.sequence)
        for upload in uploads
        if upload.epoch is not None and upload.took_effect is not None and upload.sequence is not None
    )
    return [
        began - last[epoch, sequence]
        for (epoch, _, sequence), (following_epoch, began, _) in pairwise(programs)
        if (epoch, sequence) in last and epoch == following_epoch
    ]


class DelayMeter:
    """Measures t_d while a run goes on.

    Args:
        record: also receives the events.
    """

    def __init__(self, record: Callable[[Event], None] | None = None) -> None:
        self._record = record
        self._uploads: list[Uploaded] = []
        self._reads: dict[int, Read] = {}
        self._used: list[Read] = []

    def __call__(self, event: Event) -> None:
        """Note an event."""
        match event:
            case Uploaded():
                self._uploads.append(event)
            case Read(number=number):
                self._reads[number] = event
            case Updated(readings=numbers):
                self._used += [self._reads[number] for number in numbers if number in self._reads]
        if self._record is not None:
            self._record(event)

    @property
    def delays(self) -> list[float]:
        """Each t_d so far, in τ."""
        return measure_delays(self._uploads, self._used)
