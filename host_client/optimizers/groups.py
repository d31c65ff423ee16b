"""Parameter groups: which parameters have a natural gradient, which are left to Adam, and their hyperparameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from host_client.curvature import trained_parameters

ADAM: Mapping[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
"""Default hyperparameters of a group that is left to Adam: Adam's own, whatever those of the optimizer."""

TYPO = 0.84
"""Min similarity of a group's key to a hyperparameter to count as mistyped (difflib's ratio)."""


def make_groups(
    model: nn.Module,
    given: Sequence[Mapping[str, Any]] | None,
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The parameter groups of a model: first that of the parameters that no group names, if any, then those given.

    ``param_names`` of each group are the dotted paths of its parameters, where torch has the names that it is given.

    Args:
        model: what is trained. Its frozen parameters are in no group, also where one names them.
        given: groups as of `torch.optim`, ``{"params": …, "lr": …}``; with ``"adam": True`` left to Adam. Keys that
            are no hyperparameters are kept.
        shared: the hyperparameters that a group may have for itself, with the values for those that do not.
        own: what is of the optimizer as a whole; the first group with a natural gradient holds it.

    Raises:
        ValueError: for a group with hyperparameters that it cannot have, mistyped ones, or unknown parameters, and when
            nothing is left for the natural gradient.
        TypeError: when the model is no module, or the groups are no list of dictionaries.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Invalid model: a {type(model).__name__}; give the module, not its parameters")
    if isinstance(given, Mapping) or not all(isinstance(entry, Mapping) for entry in given or ()):
        raise TypeError('Invalid groups: they must be a list of dictionaries, such as [{"params": …, "lr": 0.1}]')
    paths = {id(parameter): path for path, parameter in model.named_parameters()}
    trained = trained_parameters(model)
    free = {id(parameter) for _, parameter in trained}
    named: set[int] = set()
    groups = []
    for number, one in enumerate(given or (), start=1):
        if "params" not in one:
            raise ValueError(f"Invalid groups: group {number} has no 'params'")
        parameters = _list_parameters(one["params"])
        adam = bool(one.get("adam", False))
        defaults = {**shared, **ADAM} if adam else dict(shared)
        if adam:
            defaults.pop("momentum", None)
        _check_names(number, one, [*defaults, "adam"], own)
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
    if unnamed:
        groups.insert(0, {**shared, "adam": False, "params": unnamed})
    natural = [group for group in groups if group["params"] and not group["adam"]]
    if not natural:
        raise ValueError("Invalid groups: all parameters are left to Adam; use torch.optim.Adam")
    natural[0].update(own)
    for group in groups:
        group["param_names"] = [paths[id(parameter)] for parameter in group["params"]]
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


def _list_parameters(params: Tensor | Iterable[Any]) -> list[Tensor]:
    """Return the tensors of ``params`` as torch takes them: a tensor, tensors, or pairs of name and tensor."""
    if isinstance(params, Tensor):
        return [params]
    return [entry[1] if isinstance(entry, tuple) else entry for entry in params]


def _check_names(number: int, group: Mapping[str, Any], known: Sequence[str], own: Iterable[str]) -> None:
    elsewhere = {*own, "momentum", "betas", "eps"} - {*known}
    hyperparameters = elsewhere | {*known}
    refused = [
        name
        for name in group
        if name in elsewhere or (name not in known and get_close_matches(name, hyperparameters, 1, TYPO))
    ]
    if refused:
        raise ValueError(
            f"Invalid groups: group {number} has {', '.join(map(repr, refused))}; a group like it may have "
            f"{', '.join(map(repr, sorted(known)))} of its own, and all else is the optimizer's"
        )
