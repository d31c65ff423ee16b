"""Check that a state dictionary fits an optimizer, in every way that it could not, before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor

from host_client.optimizers.ranges import Ranges, check, check_one_momentum
from spu_link.values import all_finite

Groups = Sequence[Mapping[str, Any]]
"""Parameter groups, of an optimizer or of a state dictionary."""

ADDED = frozenset({"spring"})
"""Hyperparameters that checkpoints of earlier versions do not have: the optimizer's own value then stays."""

RENAMED = {"NGDCG": "NGD", "NGDWoodbury": "NGD"}
"""Classes of earlier versions, and their names now."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a parameter's path that come and go with DDP, torch.compile and the like, around the same parameter."""


def shapes_of(groups: Groups) -> list[list[tuple[int, ...]]]:
    """The shapes of the parameters of each group."""
    return [[tuple(parameter.shape) for parameter in group["params"]] for group in groups]


def present_format(state_dict: Mapping[str, Any], groups: Groups, name: str) -> tuple[dict[str, Any], bool]:
    """Return a state dictionary in the present format, and whether it was in that format already.

    Before, the number of steps was stored next to the groups, paths and class were not saved, and what is of the
    optimizer as a whole had an empty group where the other groups had all parameters.

    Args:
        state_dict: what is to be loaded.
        groups: those of the optimizer that is to load it.
        name: of that optimizer.

    Raises:
        ValueError: when it is not that of a natural-gradient optimizer.
    """
    if {"state", "param_groups"} <= state_dict.keys():
        saved = [dict(group) for group in state_dict["param_groups"]]
        holders = [group for group in saved if "optimizer" in group]
        for group in holders:
            group["optimizer"] = RENAMED.get(group["optimizer"], group["optimizer"])
        if holders:
            return {**state_dict, "param_groups": saved}, True
        if {"steps", "shapes"} <= state_dict.keys():
            shapes = list(state_dict["shapes"])
            if not saved[0]["params"] and len(saved) == len(groups) + 1:
                whole, shapes = saved.pop(0), shapes[1:]
                of_groups = {"params", "adam", "lr", "weight_decay", "momentum", "betas", "eps"}
                natural = next(group for group in saved if group["params"] and not group["adam"])
                natural.update({key: value for key, value in whole.items() if key not in of_groups})
            holder = next((group for group in saved if "damping" in group), saved[0])
            holder.update(optimizer=name, steps=state_dict["steps"])
            return {**state_dict, "param_groups": saved, "shapes": shapes}, False
    raise ValueError(f"the state dictionary is not that of a natural-gradient optimizer, and {name} needs one")


def check_fits(state_dict: Mapping[str, Any], groups: Groups, ranges: Ranges, name: str) -> None:
    """Refuse a state dictionary of another class of optimizer, or of other parameters.

    Args:
        state_dict: what is to be loaded, in the present format.
        groups: those of the optimizer that is to load it.
        ranges: its hyperparameters.
        name: of that optimizer.

    Raises:
        ValueError: saying what does not fit.
    """
    saved = state_dict["param_groups"]
    of = next(group["optimizer"] for group in saved if "optimizer" in group)
    if of != name:
        raise ValueError(f"the state dictionary is of another kind of optimizer than this {name}: of {of}")
    if len(saved) != len(groups):
        raise ValueError(f"the state dictionary has {len(saved)} parameter groups, and this {name} {len(groups)}")
    if "shapes" in state_dict:  # torch.distributed.checkpoint keeps state and param_groups alone
        _check_shapes(state_dict["shapes"], groups, name)
    for number, (mine, theirs) in enumerate(zip(groups, saved, strict=True)):
        _check_paths(number, mine, theirs, name)
        if theirs.get("adam", mine["adam"]) != mine["adam"]:
            there, here = ("is not", "is") if mine["adam"] else ("is", "is not")
            raise ValueError(f"group {number} {there} left to Adam in the state dictionary, and {here} in this {name}")
        missing = [key for key in _required_keys(mine, ranges) if key not in theirs]
        if missing:
            raise ValueError(
                f"the state dictionary is of another kind of optimizer than this {name}: it has no "
                f"{', '.join(map(repr, missing))} in group {number}"
            )


def check_groups(groups: Groups, ranges: Ranges) -> None:
    """Refuse values out of their range.

    Raises:
        ValueError: naming the value.
    """
    for number, group in enumerate(groups):
        check(group, ranges, number)
    check_one_momentum(groups)
    steps = next(group["steps"] for group in groups if "steps" in group)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"Invalid steps in the state dictionary: {steps}; it must be a whole number, at least 0")


def check_state(
    state: Mapping[Any, Any], group: Mapping[str, Any], mine: Mapping[str, Any], kept: Sequence[str], complete: bool
) -> None:
    """Refuse tensors that are missing, do not fit or are not finite.

    Args:
        state: what is to be loaded, by the numbers or names in ``group["params"]``.
        group: of the state dictionary.
        mine: the same group of the optimizer.
        kept: names of what the optimizer keeps of each of its parameters.
        complete: whether a name that is missing is an error, and not 0.

    Raises:
        ValueError: naming parameter and tensor.
    """
    for key, path, parameter in zip(group["params"], mine["param_names"], mine["params"], strict=True):
        entries = state.get(key, {})
        for name in kept:
            if name not in entries:
                if not complete:
                    continue
                raise ValueError(
                    f"the state dictionary has no {name} of parameter {path!r}, which an optimizer with the saved "
                    "hyperparameters keeps; for torch.distributed.checkpoint the optimizer has to have these "
                    "hyperparameters (make the scheduler) before its state dictionary is loaded into"
                )
            value, shape = entries[name], () if name == "step" else tuple(parameter.shape)
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                actual = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{name} of parameter {path!r} in the state dictionary is {actual}; it must be a tensor of shape "
                    f"{shape}"
                )
            if value.numel() and not all_finite(value):
                raise ValueError(
                    f"{name} of parameter {path!r} in the state dictionary is not finite: load an earlier checkpoint"
                )


def _required_keys(group: Mapping[str, Any], ranges: Ranges) -> list[str]:
    """Return the keys that a saved group has to have; momentum that a scheduler has given to Adam's rule is none."""
    needed = {*ranges, "adam", "steps"} - ADDED
    return [key for key in group if key in needed and not (key == "momentum" and "betas" in group)]


def _check_shapes(saved: Sequence[Sequence[Sequence[int]]], groups: Groups, name: str) -> None:
    for number, (mine, other) in enumerate(zip(shapes_of(groups), saved, strict=True)):
        different = [
            (position, was, now)
            for position, (was, now) in enumerate(zip_longest((tuple(shape) for shape in other), mine))
            if was != now
        ]
        if different:
            position, was, now = different[0]
            paths = groups[number]["param_names"]
            at = f", {paths[position]!r}" if position < len(paths) else ""
            raise ValueError(
                f"the state dictionary is of other parameters: in group {number} {len(different)} differ, the first "
                f"had the shape {was} and has {now} in this {name}{at}; model and groups must be as they were"
            )


def _check_paths(number: int, mine: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> None:
    there, here = len(theirs["params"]), len(mine["params"])
    if there != here:
        raise ValueError(f"the state dictionary has {there} parameters in group {number}, and this {name} {here}")
    for was, now in zip_longest(theirs.get("param_names", mine["param_names"]), mine["param_names"]):
        if was is None or now is None or _unwrap(was) != _unwrap(now):
            raise ValueError(
                f"the state dictionary is of other parameters, or of these in another order: in group {number} the "
                f"first to differ was {was!r} and is {now!r} in this {name}; model and groups must be as they were. "
                "A parameter that only has a new name: rename it in the param_names of the dictionary's group"
            )


def _unwrap(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)
