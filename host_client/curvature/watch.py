"""Losses that are called as functions: inside a model, or between its forward pass and the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor
from torch._C import _len_torch_function_stack, _pop_torch_function_stack, _push_on_torch_function_stack
from torch.overrides import TorchFunctionMode

Seen = Callable[[Callable[..., Tensor], tuple[Any, ...], dict[str, Any], Tensor], None]
"""Called with a function, its arguments, and the loss that it has returned."""


class Watch(TorchFunctionMode):
    """Sees calls of loss functions while it is active.

    It lies below all other modes, so that a mode which the user enters and leaves in the meantime is left in its order.

    Args:
        functions: those to report.
        seen: what is called with each call of them.
    """

    def __init__(self, functions: Collection[Callable[..., Any]], seen: Seen) -> None:
        super().__init__()
        self._functions, self._seen = frozenset(functions), seen
        self._active = False

    def start(self) -> None:
        """Begin to see calls in this thread."""
        if not self._active:
            above = _take_modes()
            _push_on_torch_function_stack(self)
            _put_modes(above)
            self._active = True

    def stop(self) -> None:
        """See no more calls."""
        if self._active:
            _put_modes([mode for mode in _take_modes() if mode is not self])
            self._active = False

    def close(self) -> None:
        """See no more calls, also where it is active in another thread, whose stack of modes is out of reach."""
        self._functions = frozenset()
        self.stop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the function, and report it if it is one of the losses."""
        result = func(*args, **(kwargs or {}))
        if func in self._functions and isinstance(result, Tensor):
            self._seen(func, args, dict(kwargs or {}), result)
        return result


def _take_modes() -> list[Any]:
    """Empty the stack of modes; the lowest one is first."""
    return [_pop_torch_function_stack() for _ in range(_len_torch_function_stack())][::-1]


def _put_modes(modes: list[Any]) -> None:
    for mode in modes:
        _push_on_torch_function_stack(mode)
