"""The trained parameters of a model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def trained_parameters(model: nn.Module, among: Iterable[nn.Parameter] | None = None) -> list[tuple[str, nn.Parameter]]:
    """The parameters that require grad with their dotted paths, each once, in the order of ``model.parameters()``.

    Args:
        model: what is trained.
        among: only these of them; None for all.

    Raises:
        ValueError: when there is none, for a complex one, or when one of `among` is not one of them.
    """
    found = [(path, parameter) for path, parameter in model.named_parameters() if parameter.requires_grad]
    if not found:
        raise ValueError("the model has no parameter that requires grad; call requires_grad_() on those to train")
    for path, parameter in found:
        if parameter.is_complex():
            raise ValueError(
                f"parameter {path!r} is complex, and F is known for real ones; hold torch.view_as_real(parameter) as "
                "the parameter, and use torch.view_as_complex of it in the model"
            )
    if among is None:
        return found
    chosen = {id(parameter): parameter for parameter in among}
    found = [(path, parameter) for path, parameter in found if chosen.pop(id(parameter), None) is not None]
    if chosen:
        wrong = [tuple(parameter.shape) for parameter in chosen.values()]
        raise ValueError(
            f"Invalid parameters: of shapes {wrong}, which the model does not have or does not "
            "train; give parameters of the model that require grad"
        )
    if not found:
        raise ValueError("Invalid parameters: none; there must be at least one")
    return found
