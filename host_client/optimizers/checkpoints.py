"""State dictionaries: the state of an optimizer, complete from the beginning and loaded as a whole or not at all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from host_client.optimizers.ranges import COMMON, Ranges
from host_client.optimizers.state_checks import check_fits, check_groups, check_state, present_format
from host_client.optimizers.update import complete, state_names


class Resumable(torch.optim.Optimizer):
    """An optimizer whose state dictionary holds all that a resumed run needs.

    ``state`` has an entry of each parameter from the beginning, and in it every tensor that the optimizer keeps of the
    parameter, 0 until the first step. So a state dictionary always has the same keys, and what loads into the tensors
    of a new optimizer (`torch.distributed.checkpoint`) finds all of them, without a step. The number of steps and the
    class are in the group of `hyperparameters`, the dotted paths of the parameters are the ``param_names`` of each.
    """

    @property
    def ranges(self) -> Ranges:
        """The range of each hyperparameter; subclasses add theirs, which makes them known."""
        return COMMON

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The first group with a natural gradient, where damping and all else is that is of no group alone.

        Learning rate, damping and so on, by name; changes hold from the next step on.
        """
        return next(group for group in self.param_groups if "damping" in group)

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        taken: int = self.hyperparameters["steps"]
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on, for ``torch.save``.

        Between two curvatures the last one is part of it, and may be large: with `curvature_every` k, it is not after
        each k-th step.
        """
        self._complete()
        own = self.register_state_dict_post_hook(lambda _, state: {**state, **self._extra_state()}, prepend=True)
        try:
            return super().state_dict()
        finally:
            own.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another optimizer of this class, of the same parameters in the same order, was.

        Its numbers hold from then on; those that it does not have, such as hyperparameters that are newer than the
        checkpoint or another user's, stay. Its schedules were not saved, and those that this optimizer was made with go
        on at the step reached. The tensors are copied.

        Raises:
            ValueError: for the state of another class or of other parameters, and for values that do not fit or are not
                finite; nothing has changed then.
        """
        put: list[Callable[[], None]] = []

        def prepare(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            prepared = self._prepare(given)
            put.append(self._read_extra_state(prepared))
            return prepared

        def finish(_: torch.optim.Optimizer) -> None:
            self._complete()
            put[0]()

        # After the hooks that may still change the dictionary, and before those that may look at the optimizer.
        handles = [
            self.register_load_state_dict_pre_hook(prepare),
            self.register_load_state_dict_post_hook(finish, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    @abstractmethod
    def _extra_state(self) -> dict[str, Any]:
        """Return what the state dictionary has in addition to ``state`` and ``param_groups``."""

    @abstractmethod
    def _read_extra_state(self, state_dict: Mapping[str, Any]) -> Callable[[], None]:
        """Check what `_extra_state` gave, if it is there, and return what puts it in place once all else is loaded.

        Raises:
            ValueError: for what does not fit.
        """

    def _state_names(self, group: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of what is kept of each parameter of a group: tensors of its shape, ``step`` a number.

        Args:
            group: its hyperparameters.
            whole: those of the optimizer as a whole.
        """
        return state_names(group)

    def _complete(self) -> None:
        """Add what the state lacks, as zeros, and let it follow parameters that have got another device or dtype."""
        for group in self.param_groups:
            names = self._state_names(group, self.hyperparameters)
            for p in group["params"]:
                complete(self.state[p], p, names)

    def _prepare(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state dictionary as torch can load it, after all checks: complete groups, tensors of its own."""
        name = type(self).__name__
        prepared, complete = present_format(state_dict, self.param_groups, name)
        check_fits(prepared, self.param_groups, self.ranges, name)
        groups = [
            {**{key: value for key, value in mine.items() if key != "params"}, **theirs}
            for mine, theirs in zip(self.param_groups, prepared["param_groups"], strict=True)
        ]
        check_groups(groups, self.ranges)
        whole = next(group for group in groups if "damping" in group)
        state = {key: _copy(entries) for key, entries in prepared["state"].items()}
        for group, mine in zip(groups, self.param_groups, strict=True):
            check_state(state, group, mine, self._state_names(group, whole), complete)
        return {**prepared, "state": state, "param_groups": groups}


def _copy(entries: Any) -> Any:
    """Return the entries of one parameter with tensors of their own: loading must not tie two optimizers together."""
    if not isinstance(entries, Mapping):
        return entries
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value
        for name, value in entries.items()
    }
