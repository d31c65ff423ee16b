"""Losses with options and inputs, drawn by hypothesis, and the dense matrices their roots are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from host_client.curvature.losses import LossCall, loss_call

REDUCTIONS = ["mean", "sum"]

MODULES: dict[Callable[..., Tensor], type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.kl_div: nn.KLDivLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.gaussian_nll_loss: nn.GaussianNLLLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
}


@dataclass(frozen=True)
class Problem:
    """A loss with options, its inputs in float64, and the names of those that come from the model."""

    function: Callable[..., Tensor]
    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ("input",)
    only_function: bool = False

    def loss(self, *outputs: Tensor) -> Tensor:
        """The loss of other outputs."""
        return self.function(**{**self.inputs, **dict(zip(self.names, outputs, strict=True))}, **self.options)

    def call(self, module: bool, by_name: bool = False) -> LossCall:
        """A call of the loss as a module or as a function."""
        inputs = {name: with_graph(x) if name in self.names else x for name, x in self.inputs.items()}
        if module and not self.only_function:
            return loss_call(MODULES[self.function](**self.options), tuple(inputs.values()), {}, None)
        if by_name:
            return loss_call(self.function, (), {**inputs, **self.options}, None)
        return loss_call(self.function, tuple(inputs.values()), self.options, None)

    def outputs(self) -> tuple[Tensor, ...]:
        """The inputs that come from the model."""
        return tuple(self.inputs[name] for name in self.names)

    def hessian(self) -> Tensor:
        """The Hessian of the loss in all entries of its outputs, one after the other."""
        outputs = self.outputs()
        sizes = [z.numel() for z in outputs]

        def flat(entries: Tensor) -> Tensor:
            return self.loss(*(x.view_as(z) for x, z in zip(entries.split(sizes), outputs, strict=True)))

        hessian: Tensor = torch.autograd.functional.hessian(flat, torch.cat([z.flatten() for z in outputs]))
        return hessian


def with_graph(z: Tensor) -> Tensor:
    """The tensor as if a model had made it."""
    return z.detach().clone().requires_grad_() * 1


def elements(call: LossCall, tensors: tuple[Tensor, ...]) -> Tensor:
    """From tensors (k, *output.shape), one an output, to (k, e, D): what belongs to each element."""
    parts = []
    for z, dims, x in zip(call.outputs, call.element_dims, tensors, strict=True):
        assert x.shape[1:] == z.shape
        rest = [dim for dim in range(z.dim()) if dim not in dims]
        assert call.element_shape == torch.Size(z.shape[dim] for dim in rest)
        x = x.permute(0, *(1 + dim for dim in rest), *(1 + dim for dim in dims))
        parts.append(x.reshape(len(x), call.element_shape.numel(), math.prod(z.shape[dim] for dim in dims)))
    return torch.cat(parts, -1)


def matrix(call: LossCall, columns: tuple[Tensor, ...]) -> Tensor:
    """Σ_k s_k s_kᵀ within elements, zero across them, over all entries of the outputs in order."""
    order = elements(call, index(call.outputs))[0]
    by_element = elements(call, columns)
    blocks = torch.einsum("kei,kej->eij", by_element, by_element)
    dense = blocks.new_zeros(order.numel(), order.numel())
    dense[order[:, :, None], order[:, None, :]] = blocks
    return dense


def index(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Number of each entry of the outputs, in a column."""
    numbers = torch.arange(sum(z.numel() for z in outputs)).split([z.numel() for z in outputs])
    return tuple(n.view(1, *z.shape) for n, z in zip(numbers, outputs, strict=True))


@st.composite
def classes(draw: st.DrawFn, function: Callable[..., Tensor] = F.cross_entropy) -> Problem:
    """Every option, layout and kind of target of a cross-entropy or NLL; some element is never ignored."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    b, d, s = draw(st.integers(1, 3)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    shape = draw(st.sampled_from([(d,), (b, d), (b, d, s), (b, d, s, 2)]))
    c = min(1, len(shape) - 1)
    z = 2 * torch.randn(shape, dtype=torch.float64, generator=generator)
    weight = torch.rand(d, dtype=torch.float64, generator=generator) + 0.1 if draw(st.booleans()) else None
    if weight is not None and draw(st.booleans()):
        weight[0] = 0.0
    ignore = draw(st.sampled_from([-100, 1, 7]))
    options = {"weight": weight, "reduction": draw(st.sampled_from(REDUCTIONS))}
    if function is F.cross_entropy:
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.2, 1.0]))
        if draw(st.booleans()):
            target = torch.rand(shape, dtype=torch.float64, generator=generator).softmax(c)
            return Problem(function, {"input": z, "target": target}, options)
    rest = (*shape[:c], *shape[c + 1 :])
    target = torch.randint(d, rest, generator=generator)
    if rest:
        target[torch.rand(rest, generator=generator) < draw(st.sampled_from([0.0, 0.5]))] = ignore
    counted = d - 1 if ignore != d - 1 else 0
    target.view(-1)[-1] = counted
    if weight is not None:
        weight[counted] = 0.7
    return Problem(function, {"input": z, "target": target}, {**options, "ignore_index": ignore})


@st.composite
def divergences(draw: st.DrawFn) -> Problem:
    """Kullback–Leibler divergences in every reduction and layout, the classes in dimension 1 or 0; z are logits."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.sampled_from([(3,), (2, 3), (2, 3, 2)]))
    z, target = torch.randn(2, *shape, dtype=torch.float64, generator=generator).unbind()
    target = target.exp() / 3  # no distribution
    log = draw(st.booleans())
    options = {"reduction": draw(st.sampled_from(["sum", "batchmean", "mean"])), "log_target": log}
    return Problem(F.kl_div, {"input": z, "target": target.log() if log else target}, options)


@st.composite
def scalars(draw: st.DrawFn) -> Problem:
    """Every option and layout of the losses whose outputs are elements."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.sampled_from([(), (3,), (2, 3), (2, 3, 2)]))

    def normal() -> Tensor:
        return 2 * torch.randn(shape, dtype=torch.float64, generator=generator)

    def uniform(shape: tuple[int, ...] = shape) -> Tensor:
        return 0.05 + 0.9 * torch.rand(shape, dtype=torch.float64, generator=generator)

    options: dict[str, Any] = {"reduction": draw(st.sampled_from(REDUCTIONS))}
    broadcast = draw(st.sampled_from([None, shape, shape[-1:], (1,) * len(shape)]))
    weights = {} if broadcast is None else {"weight": 2 * uniform(broadcast)}
    function: Callable[..., Tensor] = draw(st.sampled_from([f for f in MODULES if f not in SPECIAL]))
    if function in (F.mse_loss, F.huber_loss, F.smooth_l1_loss):
        names = draw(st.sampled_from([("input",), ("target",), ("input", "target")]))
        weighted = draw(st.booleans()) and function is not F.smooth_l1_loss
        if weighted:
            options["weight"] = uniform()
        if function is not F.mse_loss:
            options["beta" if function is F.smooth_l1_loss else "delta"] = draw(st.sampled_from([0.5, 1.0, 3.0]))
        return Problem(function, {"input": normal(), "target": normal()}, options, names, weighted)
    if function is F.binary_cross_entropy_with_logits:
        if draw(st.booleans()):
            options["pos_weight"] = 3 * uniform(shape[-1:])
        return Problem(function, {"input": normal(), "target": uniform()}, {**options, **weights})
    if function is F.binary_cross_entropy:
        target = uniform().round() if draw(st.booleans()) else uniform()
        return Problem(function, {"input": uniform(), "target": target}, {**options, **weights})
    if function is F.soft_margin_loss:
        return Problem(function, {"input": normal(), "target": normal().sign()}, options)
    assert function is F.poisson_nll_loss
    options |= {"log_input": draw(st.booleans()), "full": draw(st.booleans()), "eps": 1e-3}
    return Problem(function, {"input": 3 * uniform(), "target": normal().abs().round()}, options)


SPECIAL = {F.cross_entropy, F.nll_loss, F.kl_div, F.l1_loss, F.gaussian_nll_loss}


@st.composite
def gaussians(draw: st.DrawFn) -> Problem:
    """Every option and layout of a Gaussian negative log-likelihood, and every choice of what the model predicts."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    z, target, var = torch.randn(3, 2, 3, dtype=torch.float64, generator=generator).unbind()
    options = {"reduction": draw(st.sampled_from(REDUCTIONS)), "full": draw(st.booleans()), "eps": 0.2}
    names = draw(st.sampled_from([("input",), ("target",), ("input", "var"), ("var",), ("input", "target", "var")]))
    var = var.abs()
    if "var" not in names:
        var = draw(st.sampled_from([var, var[:, 0], var[:, :1]]))
    return Problem(F.gaussian_nll_loss, {"input": z, "target": target, "var": var}, options, names)


HESSIANS = classes() | scalars()
"""Losses whose curvature is their Hessian."""
