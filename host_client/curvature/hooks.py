"""Hooks on modules that end with their owner."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from host_client.frames import release_frames


class WeakHook:
    """A hook that neither keeps its owner alive nor travels with a copy of the module, pickled ones included."""

    def __init__(self, method: Callable[..., None] | None) -> None:
        self._method = None if method is None else weakref.WeakMethod(method)

    def __call__(self, *args: Any) -> None:
        """The method, if its owner still lives."""
        method = self._method and self._method()
        if method:
            try:
                method(*args)
            except BaseException as error:
                release_frames(error)
                raise

    def __reduce__(self) -> tuple[type[WeakHook], tuple[None]]:
        return WeakHook, (None,)
