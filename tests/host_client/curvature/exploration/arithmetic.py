"""Operations without parameters that compute: elementwise, along an axis, and mixing whatever lies along it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.host_client.curvature.exploration.operations import ANY, Axes, Place, fold, one_of, operation

ACTIVATIONS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "softplus": F.softplus,
    "sin": torch.sin,
}


@operation(*(f"torch.{name}" for name in ACTIVATIONS), function=one_of(*ACTIVATIONS))
def activation(at: Place, h: Tensor, function: str) -> Tensor:
    return ACTIVATIONS[function](h)


@operation("torch.clamp")
def clamp(at: Place, h: Tensor) -> Tensor:
    return h.clamp(-1, 1)


@operation("F.dropout")
def dropout(at: Place, h: Tensor) -> Tensor:
    return F.dropout(h, 0.3, training=at.training)


@operation("torch.mul(data)")
def noise(at: Place, h: Tensor) -> Tensor:
    """Random numbers of torch's own generator, that a capture must leave alone."""
    return h * (1 + 0.1 * torch.randn_like(h))


@operation("torch.mul(data)", axis=ANY)
def weigh_by_data(at: Place, h: Tensor, axis: int) -> Tensor:
    weights = at.data.normal(h.shape[axis])
    return (h.movedim(axis, -1) * weights).movedim(-1, axis)


@operation("torch.addcmul", axis=ANY)
def addcmul(at: Place, h: Tensor, axis: int) -> Tensor:
    return torch.addcmul(h, h.flip(axis), h, value=0.3)


@operation("torch.lerp", axis=ANY)
def lerp(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.lerp(h.roll(1, axis), 0.3)


@operation("torch.div", axis=ANY)
def divide_by_sum_of_squares(at: Place, h: Tensor, axis: int) -> Tensor:
    return h / (1 + h.square().sum(axis, keepdim=True))


@operation("F.softmax", axis=ANY)
def softmax(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.softmax(axis)


@operation("F.log_softmax", axis=ANY)
def log_softmax(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.log_softmax(axis)


@operation("torch.cumsum", axis=ANY)
def cumsum(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.cumsum(axis)


@operation("torch.cumprod", axis=ANY)
def cumprod(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.tanh().cumprod(axis)


@operation("torch.logcumsumexp", axis=ANY)
def logcumsumexp(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.logcumsumexp(axis)


@operation("torch.cummax", axis=ANY)
def cummax(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.cummax(axis).values


@operation("torch.diff", axis=Axes(("any",), smallest=2))
def diff(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.diff(dim=axis)


REDUCTIONS = {
    "mean": lambda h, axis: h.mean(axis, keepdim=True),
    "sum": lambda h, axis: h.sum(axis, keepdim=True),
    "amax": lambda h, axis: h.amax(axis, keepdim=True),
    "max": lambda h, axis: h.max(axis, keepdim=True).values,
    "min": lambda h, axis: h.min(axis, keepdim=True).values,
    "logsumexp": lambda h, axis: h.logsumexp(axis, keepdim=True),
    "var": lambda h, axis: h.var(axis, correction=0, keepdim=True),
    "prod": lambda h, axis: h.tanh().prod(axis, keepdim=True),
}


@operation(*(f"torch.{name}" for name in REDUCTIONS), axis=ANY, function=one_of(*REDUCTIONS))
def reduction(at: Place, h: Tensor, axis: int, function: str) -> Tensor:
    return REDUCTIONS[function](h, axis)


@operation(*(f"torch.{name}" for name in REDUCTIONS), axis=ANY, function=one_of(*REDUCTIONS))
def differences_from_a_reduction(at: Place, h: Tensor, axis: int, function: str) -> Tensor:
    """Along the axis of the samples, each sample's result depends on all."""
    return h - REDUCTIONS[function](h, axis)


@operation("F.normalize", axis=ANY)
def normalize(at: Place, h: Tensor, axis: int) -> Tensor:
    return F.normalize(h, dim=axis, eps=0.1)


@operation("F.glu", axis=Axes(("fixed",), smallest=2))
def glu(at: Place, h: Tensor, axis: int) -> Tensor:
    return F.glu(h.narrow(axis, 0, h.shape[axis] // 2 * 2), axis)


POOLS = {
    "avg_pool1d": lambda h: F.avg_pool1d(h, 2, 1),
    "max_pool1d": lambda h: F.max_pool1d(h, 2, 1),
    "lp_pool1d": lambda h: F.lp_pool1d(h.exp(), 2, 2, 1),
    "adaptive_avg_pool1d": lambda h: F.adaptive_avg_pool1d(h, 2),
    "adaptive_max_pool1d": lambda h: F.adaptive_max_pool1d(h, 2),
    "interpolate": lambda h: F.interpolate(h, 3, mode="linear"),
}


@operation(
    *(f"F.{name}" for name in POOLS), axes=Axes(("any", "any"), smallest=2), dims=(2, 5), function=one_of(*POOLS)
)
def pool(at: Place, h: Tensor, axes: tuple[int, int], function: str) -> Tensor:
    folded, back = fold(h, *axes)
    return back(POOLS[function](folded))


@operation("F.avg_pool2d", "F.max_pool2d", axes=Axes(("any", "any"), smallest=2), largest=one_of(True, False))
def pool2d(at: Place, h: Tensor, axes: tuple[int, int], largest: bool) -> Tensor:
    folded, back = fold(h, *axes)
    function = F.max_pool2d if largest else F.avg_pool2d
    return back(function(folded.unsqueeze(1), 2, 1).squeeze(1))


@operation("torch.bmm", axes=Axes(("any", "any")))
def gram(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    return back(torch.bmm(folded, folded.mT))


@operation("torch.einsum", axes=Axes(("any", "any")))
def einsum_with_itself(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    return back(torch.einsum("bij,bkj,bkl->bil", folded, folded.tanh(), folded))


@operation("F.scaled_dot_product_attention", axes=Axes(("any", "any")), causal=one_of(True, False))
def self_attention(at: Place, h: Tensor, axes: tuple[int, int], causal: bool) -> Tensor:
    folded, back = fold(h, *axes)
    return back(F.scaled_dot_product_attention(folded, folded.flip(1), folded.sin(), is_causal=causal))


@operation("F.scaled_dot_product_attention", axes=Axes(("any", "any")))
def masked_attention(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    extent = folded.shape[1]
    mask = at.data.mask(extent, extent) | torch.eye(extent, dtype=torch.bool)
    return back(F.scaled_dot_product_attention(folded, folded, folded.sin(), attn_mask=mask))


@operation("torch.cdist", axes=Axes(("any", "any")))
def squared_distances(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    others = at.data.normal(2, folded.shape[2]) + 3
    return back(torch.cdist(folded.tanh(), others.expand(len(folded), 2, -1)))


@operation("torch.linalg.solve", axis=Axes(("any",)))
def solve(at: Place, h: Tensor, axis: int) -> Tensor:
    folded, back = fold(h, axis)
    extent = folded.shape[1]
    matrix = torch.eye(extent, dtype=h.dtype) * 3 + (folded.T @ folded).tanh() / extent
    return back(torch.linalg.solve(matrix, folded.T).T)


@operation("torch.cosine_similarity", axis=ANY)
def cosine_similarity(at: Place, h: Tensor, axis: int) -> Tensor:
    return torch.cosine_similarity(h, h.cos(), dim=axis, eps=0.1).unsqueeze(axis)
