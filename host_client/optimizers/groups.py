"""Parameter groups: which parameters have a natural gradient, which are left to Adam, and their hyperparameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from host_client.curvature import trained_parameters

ADAM: Mapping[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
"""What a group that is left to Adam has where it does not say: Adam's own, whatever those of the optimizer."""


def make_groups(
    model: nn.Module,
    given: Sequence[Mapping[str, Any]] | None,
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The parameter groups of a model: first that of the parameters that no group names, then those given.

    Args:
        model: what is trained. Its frozen parameters are in no group, also where one names them.
        given: groups as of `torch.optim`, ``{"params": …, "lr": …}``; with ``"adam": True`` left to Adam.
        shared: the hyperparameters that a group may have for itself, with the values for those that do not.
        own: the other hyperparameters, of the optimizer as a whole; the first group holds them.

    Raises:
        ValueError: for a group with unknown names or parameters, and when nothing is left for the natural gradient.
        TypeError: when the model is no module, or the groups are no list of dictionaries.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Invalid model: a {type(model).__name__}; give the module, not its parameters")
    if isinstance(given, Mapping) or not all(isinstance(one, Mapping) for one in given or ()):
        raise TypeError('Invalid groups: they must be a list of dictionaries, such as [{"params": …, "lr": 0.1}]')
    paths = {id(parameter): path for path, parameter in model.named_parameters()}
    trained = trained_parameters(model)
    free = {id(parameter) for _, parameter in trained}
    named: set[int] = set()
    groups = []
    for number, one in enumerate(given or (), start=1):
        if "params" not in one:
            raise ValueError(f"Invalid groups: group {number} has no 'params'")
        parameters = _listed(one["params"])
        adam = bool(one.get("adam", False))
        defaults = {**shared, **ADAM} if adam else dict(shared)
        if adam:
            defaults.pop("momentum", None)
        _check_names(number, one, [*defaults, "adam"])
        for parameter in parameters:
            if id(parameter) not in paths:
                raise ValueError(
                    f"Invalid groups: group {number} names a tensor of shape {tuple(parameter.shape)} that is not a "
                    "parameter of the model"
                )
            if id(parameter) in named:
                raise ValueError(f"Invalid groups: parameter {paths[id(parameter)]!r} is named twice")
            named.add(id(parameter))
        rest = {name: value for name, value in one.items() if name != "params"}
        groups.append({**defaults, **rest, "adam": adam, "params": [p for p in parameters if id(p) in free]})
    unnamed = [parameter for _, parameter in trained if id(parameter) not in named]
    groups.insert(0, {**shared, **own, "adam": False, "params": unnamed})
    if not any(group["params"] for group in groups if not group["adam"]):
        raise ValueError("Invalid groups: all parameters are left to Adam; use torch.optim.Adam")
    return groups


def check_frozen(parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Refuse to go on without parameters that have been unfrozen since the groups were made.

    Args:
        parameters: those that were frozen then, with their paths.

    Raises:
        RuntimeError: naming the first that is not frozen any more.
    """
    for path, parameter in parameters:
        if parameter.requires_grad:
            raise RuntimeError(
                f"parameter {path!r} was frozen when the optimizer was made and is not any more: make a new optimizer "
                "to train it, or freeze it with requires_grad_(False)"
            )


def shapes_of(groups: Sequence[Mapping[str, Any]]) -> list[list[tuple[int, ...]]]:
    """The shapes of the parameters of each group."""
    return [[tuple(parameter.shape) for parameter in group["params"]] for group in groups]


def check_fits(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], name: str) -> None:
    """Refuse a state dictionary of other parameters, or of another kind of optimizer.

    Args:
        state_dict: what is to be loaded, with the ``shapes`` of its groups.
        groups: those of the optimizer that is to take it.
        name: of that optimizer.

    Raises:
        ValueError: saying what does not fit.
    """
    if not {"state", "param_groups", "steps", "shapes", "operator"} <= state_dict.keys():
        raise ValueError(f"the state dictionary is not that of a natural-gradient optimizer, and {name} needs one")
    saved, shapes = [[tuple(shape) for shape in one] for one in state_dict["shapes"]], shapes_of(groups)
    if len(saved) != len(shapes):
        raise ValueError(f"the state dictionary has {len(saved)} parameter groups, and this {name} {len(shapes)}")
    for number, (mine, other) in enumerate(zip(shapes, saved, strict=True)):
        if mine != other:
            different = [pair for pair in zip_longest(other, mine) if pair[0] != pair[1]]
            was, now = different[0]
            raise ValueError(
                f"the state dictionary is of other parameters: in group {number} {len(different)} differ, the first "
                f"had the shape {was} and has {now} in this {name}; model and groups must be as they were"
            )
    for number, (group, old) in enumerate(zip(groups, state_dict["param_groups"], strict=True)):
        missing = [key for key in group if key not in old]
        if missing:
            raise ValueError(
                f"the state dictionary is of another kind of optimizer than this {name}: it has no "
                f"{', '.join(map(repr, missing))} in group {number}"
            )


def _listed(params: Tensor | Iterable[Any]) -> list[Tensor]:
    """What torch takes for ``params``: a tensor, tensors, or pairs of name and tensor."""
    if isinstance(params, Tensor):
        return [params]
    return [one[1] if isinstance(one, tuple) else one for one in params]


def _check_names(number: int, group: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = [name for name in group if name not in known and name != "params"]
    if unknown:
        raise ValueError(
            f"Invalid groups: group {number} has {', '.join(map(repr, unknown))}; a group like it may have "
            f"{', '.join(map(repr, sorted(known)))} of its own, and all else is the optimizer's"
        )
