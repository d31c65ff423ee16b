"""Release the local variables that an error keeps alive: those of the functions that it was raised in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

OURS = ("host_client", "spu_link", "spu_server", "spu_lab", "tngd")
"""Packages whose frames are cleared; those of users and of other libraries are left for a debugger."""


def release_frames(error: BaseException) -> None:
    """Clear the local variables of this project's frames, so that who keeps an error keeps no operator with it.

    Args:
        error: with the errors that it was raised from. Functions that still run keep theirs.
    """
    todo, seen = [error], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        step = one.__traceback__
        while step is not None:
            frame = step.tb_frame
            if str(frame.f_globals.get("__name__")).partition(".")[0] in OURS:
                with suppress(RuntimeError):  # it still runs
                    frame.clear()
            step = step.tb_next
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions


def releasing(function: Callable[P, T]) -> Callable[P, T]:
    """Make the errors of a function keep nothing of it alive; see `release_frames`."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            release_frames(error)
            raise

    return called
