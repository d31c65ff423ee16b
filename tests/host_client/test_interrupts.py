"""Ctrl-C in a blocking call: it is raised as such, and leaves nothing behind that a later call waits for."""

from __future__ import annotations

import itertools
import sys
from types import FrameType
from typing import Any, Self

import pytest
import torch

from host_client import Session, connect
from spu_link.operators import Rows

OPERATOR, DRIVE = Rows(torch.ones(1, 3)), torch.ones(3)


def solve(session: Session) -> None:
    session.solve(OPERATOR, DRIVE, damping=1.0, analog_time=50.0, timeout=30.0)


class InterruptedAt:
    """Raises KeyboardInterrupt where this thread, within a block, enters or leaves a function for the n-th time.

    There the interpreter looks for signals: at the beginning of a function, and after a call of one in C.
    """

    def __init__(self, number: int) -> None:
        self.left = number

    def __enter__(self) -> Self:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_return"):
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a weak reference's callback
def test_an_interrupt_anywhere_in_a_call_is_raised_as_such_and_the_next_call_works() -> None:
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        for number in itertools.count(1):
            interrupted = InterruptedAt(number)
            try:
                with interrupted:
                    solve(session)
            except KeyboardInterrupt:
                solve(session)
            if interrupted.left > 0:
                break
        assert number > 20
