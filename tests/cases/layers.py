"""Layers by themselves: one case for each kind and each option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.cases.case import Case
from tests.cases.shared import IMAGE, TOKENS, convolutional, made_of, mlp
from tests.networks import (
    Attention,
    Mean,
    TiedAutoencoder,
    TwoHeads,
    parameter,
    scaled,
)


def _batch_norm(*, affine: bool, frozen: bool) -> nn.Module:
    norm = nn.BatchNorm2d(3, affine=affine)
    norm.running_mean, norm.running_var = torch.randn(3), torch.rand(3) + 0.5
    norm.eval().requires_grad_(not frozen)
    return nn.Sequential(nn.Conv2d(4, 3, 3), norm, nn.Flatten(), nn.Linear(60, 3))


def _normalised(norm: Callable[[], nn.Module], *, features: int = 6) -> Callable[[], nn.Module]:
    """A normalisation, its scale and shift of order one, between two convolutions over 8 places."""

    def build() -> nn.Module:
        layer = norm()
        for p in layer.parameters():
            nn.init.normal_(p, 1.0, 0.5)
        return nn.Sequential(nn.Conv1d(4, features, 1), layer, nn.Tanh(), nn.Flatten(), nn.Linear(8 * features, 3))

    return build


def _by_token(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Layers on every token, and the mean of all tokens."""
    return lambda: nn.Sequential(*(layer() for layer in layers), Mean())


def _embedded(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Embedding(6, 4, **options), nn.Flatten(), nn.Tanh(), nn.Linear(20, 3))


LINEAR = [
    Case("linear layer as the model", lambda: nn.Linear(5, 3), (5,)),
    Case("linear without bias", lambda: nn.Linear(5, 3, bias=False), (5,)),
    Case("mlp", mlp, (5,)),
    Case("sum over the batch", mlp, (5,), reduction="sum"),
    Case("two classes", lambda: nn.Linear(5, 2), (5,)),
    Case("batch of one", mlp, (5,), batch=1),
    Case("one feature", lambda: nn.Sequential(nn.Linear(1, 4, bias=False), nn.Linear(4, 3)), (1,)),
    Case("branches", TwoHeads, (5,)),
    Case("linear on tokens", _by_token(lambda: nn.Linear(4, 6), nn.Tanh, lambda: nn.Linear(6, 3)), TOKENS),
    Case("linear on one token", _by_token(lambda: nn.Linear(4, 6), nn.Tanh, lambda: nn.Linear(6, 3)), (1, 4)),
    Case(
        "linear on two leading axes",
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3, bias=False), Mean(1), Mean(1)),
        (2, 3, 4),
    ),
    Case(
        "linear on tokens folded into the batch",
        made_of(body=lambda: nn.Linear(4, 3))(lambda m, x: m.body(x.reshape(-1, 4)).tanh().view(len(x), -1, 3).sum(1)),
        TOKENS,
    ),
    Case(
        "linear on tokens before the samples",
        made_of(body=lambda: nn.Linear(4, 3))(lambda m, x: m.body(x.transpose(0, 1)).tanh().mean(0)),
        TOKENS,
    ),
    Case(
        "linear on tokens folded before the samples",
        made_of(body=lambda: nn.Linear(4, 3))(
            lambda m, x: m.body(x.transpose(0, 1).reshape(-1, 4)).tanh().view(-1, len(x), 3).sum(0)
        ),
        TOKENS,
    ),
    Case(
        "matrix product with a parameter",
        made_of(a=lambda: parameter(5, 4), b=lambda: parameter(3, 4))(lambda m, x: (x @ m.a).tanh().matmul(m.b.T)),
        (5,),
    ),
]

EMBEDDING = [
    Case("embedding", _embedded(), (5,), vocabulary=6),
    Case("embedding with padding", _embedded(padding_idx=2), (5,), vocabulary=6, unlike=("curvlinops",)),
    Case("embedding as the model", lambda: nn.Embedding(6, 3), (), vocabulary=6),
    Case("embedding of pictures", lambda: nn.Sequential(nn.Embedding(6, 3), Mean(1), Mean(1)), (3, 2), vocabulary=6),
    Case(
        "positions as a parameter",
        made_of(p=lambda: parameter(5, 4), head=lambda: nn.Linear(4, 3))(lambda m, x: m.head((x + m.p).tanh().mean(1))),
        TOKENS,
    ),
    Case(
        "positions as a parameter with a batch axis",
        made_of(p=lambda: parameter(1, 5, 4), head=lambda: nn.Linear(4, 3))(
            lambda m, x: m.head((m.p[:, : x.shape[1]] * 2 + x).tanh().mean(1))
        ),
        TOKENS,
        fallback=True,
    ),
    Case(
        "positions as an embedding",
        made_of(p=lambda: nn.Embedding(7, 4), head=lambda: nn.Linear(4, 3))(
            lambda m, x: m.head((x + m.p(torch.arange(x.shape[1])[None])).tanh().mean(1))
        ),
        TOKENS,
    ),
    Case(
        "class token",
        made_of(t=lambda: parameter(1, 1, 4), head=lambda: nn.Linear(4, 3))(
            lambda m, x: m.head(torch.cat([m.t.expand(len(x), -1, -1), x], 1).softmax(1).square().sum(1).tanh())
        ),
        TOKENS,
    ),
    Case("embedding tied to the output", lambda: TiedAutoencoder(5, 3), (4,), vocabulary=5, batch=3),
]

NORMALISATION = [
    Case("frozen batch norm", lambda: _batch_norm(affine=True, frozen=True), IMAGE),
    Case("batch norm in evaluation mode", lambda: _batch_norm(affine=True, frozen=False), IMAGE),
    Case("batch norm without parameters", lambda: _batch_norm(affine=False, frozen=False), IMAGE),
    Case("layer norm", _normalised(lambda: nn.LayerNorm(8)), (4, 8)),
    Case("layer norm over all", _normalised(lambda: nn.LayerNorm((6, 8))), (4, 8)),
    Case("layer norm without bias", _normalised(lambda: nn.LayerNorm(8, bias=False)), (4, 8)),
    Case("layer norm of one token", lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)), (5,)),
    Case("rms norm", _normalised(lambda: nn.RMSNorm(8)), (4, 8)),
    Case("group norm", _normalised(lambda: nn.GroupNorm(2, 6)), (4, 8)),
    Case("instance norm", _normalised(lambda: nn.InstanceNorm1d(6, affine=True)), (4, 8)),
    Case(
        "instance norm with statistics",
        _normalised(lambda: nn.InstanceNorm1d(6, affine=True, track_running_stats=True)),
        (4, 8),
    ),
    Case("layer norm, frozen scale", _normalised(lambda: nn.LayerNorm(8)), (4, 8), frozen=("1.weight",)),
    Case("group norm, frozen shift", _normalised(lambda: nn.GroupNorm(2, 6)), (4, 8), frozen=("1.bias",)),
]

PARAMETERS = [
    Case(
        "scales and biases",
        made_of(
            body=lambda: nn.Linear(5, 3),
            scale=lambda: parameter(3),
            bias=lambda: parameter(3),
            temperature=lambda: parameter(),
        )(scaled),
        (5,),
        fallback=True,
    ),
    Case(
        "bias alone",
        made_of(body=lambda: nn.Linear(5, 3).requires_grad_(False), bias=lambda: parameter(3))(
            lambda m, x: m.body(x) + m.bias
        ),
        (5,),
    ),
    Case(
        "scale alone",
        made_of(body=lambda: nn.Linear(5, 3).requires_grad_(False), scale=lambda: parameter(3))(
            lambda m, x: m.scale * m.body(x)
        ),
        (5,),
    ),
    Case(
        "scale of tokens in place",
        made_of(body=lambda: nn.Linear(4, 3), scale=lambda: parameter(1, 1, 3))(
            lambda m, x: m.body(x).mul_(m.scale).mean(1)
        ),
        TOKENS,
        fallback=True,
    ),
    Case(
        "bias of tokens in place",
        made_of(body=lambda: nn.Linear(4, 3), bias=lambda: parameter(5, 1), shift=lambda: parameter(1))(
            lambda m, x: (m.body(x).add_(m.bias) - m.shift).tanh().mean(1)
        ),
        TOKENS,
        fallback=True,
    ),
    Case(
        "gate of a residual branch",
        made_of(body=lambda: nn.Linear(5, 5), gate=lambda: parameter(), head=lambda: nn.Linear(5, 3))(
            lambda m, x: m.head(x + m.gate * m.body(x).tanh())
        ),
        (5,),
    ),
    Case(
        "a number and a vector, repeated for each sample",
        made_of(body=lambda: nn.Linear(5, 3), scale=lambda: parameter(), bias=lambda: parameter(3))(
            lambda m, x: (m.body(x).flatten() * m.scale.repeat(3 * len(x)) + m.bias.repeat(len(x))).view(-1, 3)
        ),
        (5,),
    ),
    Case(
        "quotient and difference",
        made_of(body=lambda: nn.Linear(5, 3), a=lambda: parameter(3), b=lambda: parameter(1))(
            lambda m, x: (1 - m.a) / (m.body(x).exp() + m.b.exp()) - x[:, :3] / m.a.exp()
        ),
        (5,),
        fallback=True,
    ),
    Case(
        "prelu", lambda: nn.Sequential(nn.Linear(5, 4), nn.PReLU(4), nn.Linear(4, 3), nn.PReLU()), (5,), fallback=True
    ),
]

FROZEN = [
    Case("frozen layer", mlp, (5,), frozen=("0.weight", "0.bias")),
    Case("frozen layer in between", mlp, (5,), frozen=("2.weight",)),
    Case("frozen linear weight", mlp, (5,), frozen=("0.weight",)),
    Case("frozen bias", mlp, (5,), frozen=("4.bias",)),
    Case("frozen convolution weight", convolutional(), IMAGE, frozen=("0.weight",)),
    Case("frozen embedding", _embedded(), (5,), vocabulary=6, frozen=("0.weight",)),
    Case(
        "frozen projection of attention",
        lambda: Attention(batch_first=True),
        TOKENS,
        batch=3,
        frozen=("attention.in_proj_weight", "attention.in_proj_bias"),
    ),
]
