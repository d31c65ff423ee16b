"""An accelerator in software: values on it reach the host by copies alone, and every such copy is noted.

torch lets one backend be written in Python, its PrivateUse1 device. Here a tensor on ``simulated:0`` holds a tensor on
the CPU that does the arithmetic, so results are the CPU's to the bit, while the rules of an accelerator hold:
operations that mix devices fail, and what is copied asynchronously is not there before the host has waited for it.

`register` changes torch for the rest of the process, so tests that use it run in separate processes.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "simulated"


@dataclass(frozen=True)
class ToHost:
    """A copy to the host.

    Attributes:
        nbytes: how much.
        pinned: whether it went to pinned memory without the host waiting for it.
    """

    nbytes: int
    pinned: bool


_noted: list[ToHost] = []
_under_way: list[tuple[Tensor, Tensor]] = []
_pinned: weakref.WeakSet[Tensor] = weakref.WeakSet()
_libraries: list[torch.library.Library] = []


@contextlib.contextmanager
def copies_to_host() -> Iterator[list[ToHost]]:
    """The copies to the host while this is entered."""
    _noted.clear()
    yield _noted


class Held(Tensor):
    """A tensor on the accelerator."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Held:
        made: Held = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # noqa: SLF001
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation, with the CPU in the place of the accelerator."""
    name = operation.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    theirs = [tensor for tensor in tensors if isinstance(tensor, Held)]
    inner_args, inner_kwargs = tree_map_only(Held, lambda tensor: tensor.held, (args, kwargs))
    if name == "_local_scalar_dense":
        _noted.append(ToHost(theirs[0].nbytes, pinned=False))
        return operation(*inner_args)
    if name == "copy_" and not isinstance(args[0], Held):
        return _copy_to_host(args[0], args[1], non_blocking=args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    place = kwargs.get("device")
    if place is not None:
        inner_kwargs["device"] = torch.device("cpu")
        if torch.device(place).type == "cpu":
            _noted.append(ToHost(sum(tensor.nbytes for tensor in theirs), pinned=False))
            return operation(*inner_args, **inner_kwargs)
    elif name != "copy_":
        for tensor in tensors:  # as on CUDA: only scalars may lie elsewhere
            assert isinstance(tensor, Held) or tensor.dim() == 0, f"{name} mixes {NAME} and cpu"
    return tree_map_only(Tensor, _on_accelerator(args), operation(*inner_args, **inner_kwargs))


def _run_whole(operation: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(operation, args, kwargs)


def _on_accelerator(args: Any) -> Any:
    """Wraps results; one that was an argument (of an in-place operation) stays the same tensor."""
    known = {id(leaf.held): leaf for leaf in tree_leaves(args) if isinstance(leaf, Held)}
    return lambda result: known[id(result)] if id(result) in known else Held(result)


def _copy_to_host(to: Tensor, source: Held, *, non_blocking: bool | None) -> Tensor:
    pinned = any(tensor.untyped_storage().data_ptr() == to.untyped_storage().data_ptr() for tensor in _pinned)
    _noted.append(ToHost(source.nbytes, pinned=pinned and bool(non_blocking)))
    if non_blocking:
        to.fill_(0x55)  # whoever looks before it has arrived sees this
        _under_way.append((to, source.held.clone()))
    else:
        to.copy_(source.held)
    return to


class _Module(_DummyBackendModule):  # type: ignore[misc]
    """Its random numbers are the CPU's, whose generator takes care of itself."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


streams: list[tuple[str, int]] = []
"""``("record", event)`` and ``("wait", event)``, in their order."""


class _Stream:
    """The accelerator's only stream."""

    def record_event(self) -> int:
        event = len(streams)
        streams.append(("record", event))
        return event

    def wait_event(self, event: int) -> None:
        streams.append(("wait", event))

    def synchronize(self) -> None:
        streams.append(("synchronize", 0))
        while _under_way:
            to, values = _under_way.pop(0)
            to.copy_(values)


def register() -> torch.device:
    """Make the accelerator known to torch."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run_whole, "PrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    _libraries.extend((library, aten))
    # torch makes these with a change of size, which a tensor that holds another one cannot follow.
    for overload in ("default", "start", "start_step"):
        operation = getattr(torch.ops.aten.arange, overload)
        aten.impl(operation, partial(_run_whole, operation), "PrivateUse1")
    torch.__future__.set_swap_module_params_on_conversion(True)  # so that shared parameters stay shared
    empty, generator = torch.empty, torch.Generator

    def pinning(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        if pin_memory:
            _pinned.add(made)
        return made

    class Generator(generator):  # torch has no way to write one in Python for PrivateUse1
        def __new__(cls, device: Any = "cpu") -> Any:
            return super().__new__(cls)

    torch.empty, torch.Generator = pinning, Generator  # type: ignore[assignment,misc]
    torch.accelerator.current_stream = lambda device=None: _Stream()  # type: ignore[assignment,return-value]
    return torch.device(NAME, 0)
