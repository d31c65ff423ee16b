"""Optimizers by name: switching a string switches the method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import torch
from torch import nn

from host_client.curvature import Criteria, trained_parameters
from host_client.names import OptimizerName as OptimizerName
from host_client.optimizers.kfac import KFAC
from host_client.optimizers.ngd import NGD
from host_client.optimizers.options import NaturalGradientOptions
from host_client.optimizers.tngd import TNGD
from host_client.solvers import ConjugateGradients, solve_dense, solve_woodbury

if TYPE_CHECKING:
    from host_client.blocking import Session


def _ngd_cg(
    model: nn.Module,
    criterion: Criteria,
    *,
    iterations: int = ConjugateGradients.iterations,
    tolerance: float = ConjugateGradients.tolerance,
    **options: Any,
) -> NGD:
    return NGD(model, criterion, solver=ConjugateGradients(iterations, tolerance), **options)


_NATURAL: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "tngd": TNGD,
    "ngd": partial(NGD, solver=solve_dense),
    "ngd-cg": _ngd_cg,
    "ngd-woodbury": partial(NGD, solver=solve_woodbury),
    "kfac": KFAC,
}
_PLAIN: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def make_optimizer(
    name: str, model: nn.Module, criterion: Criteria, *, session: Session | None = None, **hyperparameters: Any
) -> torch.optim.Optimizer:
    """The optimizer of this name for the trained parameters of a model.

    Args:
        name: ``"tngd"``, by a device; ``"ngd"``, ``"ngd-cg"`` and ``"ngd-woodbury"``, `NGD` with `solve_dense`,
            `ConjugateGradients` (whose options are hyperparameters) and `solve_woodbury`; ``"kfac"``; ``"adam"`` and
            ``"sgd"``, torch's own.
        model: what is trained.
        criterion: the loss; torch's own have no use for it.
        session: the device; needed for ``"tngd"``, and only used there.
        hyperparameters: the optimizer's own; `hyperparameters_of` lists them.

    Raises:
        ValueError: for an unknown name, for a hyperparameter that this method does not have, or for `tngd` without a
            session; and as the optimizer itself.
    """
    known = hyperparameters_of(name)
    unknown = [option for option in hyperparameters if option not in known]
    if unknown:
        raise ValueError(
            f"Invalid hyperparameters of {name}: {', '.join(unknown)}; it takes {', '.join(sorted(known))}"
        )
    if name in _PLAIN:
        return _PLAIN[name]([parameter for _, parameter in trained_parameters(model)], **hyperparameters)
    if name == "tngd":
        if session is None:
            raise ValueError("tngd needs a session on a device: `with spu.session() as session`, session=session")
        return TNGD(model, criterion, session, **hyperparameters)
    return _NATURAL[name](model, criterion, **hyperparameters)


def hyperparameters_of(name: str) -> frozenset[str]:
    """The names of the hyperparameters that `make_optimizer` takes for this method.

    Raises:
        ValueError: for an unknown name.
    """
    maker = {**_NATURAL, **_PLAIN}.get(name)
    if maker is None:
        raise ValueError(f"Invalid optimizer: {name!r}; it must be one of {', '.join(get_args(OptimizerName))}")
    given = {"model", "criterion", "session", "solver", "params"}
    own = inspect.signature(maker).parameters.values()
    names = {parameter.name for parameter in own if parameter.kind is not parameter.VAR_KEYWORD} - given
    shared = set(get_type_hints(NaturalGradientOptions)) if name in _NATURAL else set()
    return frozenset(names | shared)
