"""Models: attention, sharing, recurrence, chance, and functions without a rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests import public
from tests.cases.case import Case
from tests.cases.shared import TOKENS, made_of
from tests.networks import (
    Attention,
    Cells,
    Encoder,
    Mean,
    Recurrent,
    Squared,
    parameter,
)


def _parametrised() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3))


def _same_twice() -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 3))


def _shared_weight() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    model[2].weight = model[0].weight
    return model


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Of a model of ``transformers``."""
    logits: Tensor = model(x).logits
    return logits


def _next_token(model: nn.Module, x: Tensor) -> Tensor:
    """Of a language model of ``transformers``: scores of all tokens but the last, (b·(s − 1), d)."""
    logits: Tensor = model(input_ids=x).logits
    return logits[:, :-1].flatten(0, 1)


ATTENTION = [
    Case("attention", lambda: Attention(batch_first=True), TOKENS, batch=3),
    Case("attention, tokens first", lambda: Attention(batch_first=False), TOKENS, batch=3),
    Case(
        "attention without weights",
        lambda: Attention(batch_first=False, need_weights=False),
        TOKENS,
        batch=3,
        unlike=("curvlinops",),
    ),
    Case("cross attention", lambda: Attention(batch_first=True, cross=True), TOKENS, batch=3),
    Case("cross attention, tokens first", lambda: Attention(batch_first=False, cross=True), TOKENS, batch=3),
    Case(
        "learnt queries",
        made_of(
            queries=lambda: parameter(1, 2, 4),
            attention=lambda: nn.MultiheadAttention(4, 2, batch_first=True),
            head=lambda: nn.Linear(4, 3),
        )(lambda m, x: m.head(m.attention(m.queries.expand(len(x), -1, -1), x, x)[0].tanh().mean(1))),
        TOKENS,
        batch=3,
    ),
    Case(
        "attention, scores flattened by the model",
        made_of(attention=lambda: nn.MultiheadAttention(4, 2, batch_first=True), head=lambda: nn.Linear(4, 3))(
            lambda m, x: m.head(m.attention(x, x, x)[0].tanh()).flatten(0, 1)
        ),
        TOKENS,
        batch=3,
    ),
    Case("encoder", lambda: Encoder(norm_first=False), (5,), vocabulary=7, batch=3, unlike=("curvlinops",)),
    Case("encoder, norm first", lambda: Encoder(norm_first=True), (5,), vocabulary=7, batch=3, unlike=("curvlinops",)),
]

TRANSFORMERS = [
    Case(
        f"{name}, {attention}",
        lambda build=build, attention=attention: build(attention),  # type: ignore[misc]
        sample,
        vocabulary=vocabulary,
        call=call,
        batch=2,
        unlike=("curvlinops",) if attention == "sdpa" or name in ("bert", "lora") else (),
        tolerance=1e-5 if attention == "eager" and name != "gpt2" else 1e-10,  # softmax in float32
    )
    for name, build, sample, vocabulary, call in [
        ("bert", public.bert, (5,), 11, _logits),
        ("gpt2", public.gpt2, (4,), 7, _next_token),
        ("vit", public.vit, (3, 4, 8), None, _logits),
        ("lora", public.lora, (5,), 11, _logits),
    ]
    for attention in ("eager", "sdpa")
] + [
    Case("resnet", public.resnet, (3, 8, 8), call=_logits, batch=2),
]

SHARING = [
    Case("layer called twice", _same_twice, (5,)),
    Case("two layers with one weight", _shared_weight, (5,)),
    Case(
        "linear layer that is its own transpose",
        made_of(w=lambda: parameter(3, 5))(lambda m, x: (x @ m.w.T).tanh() @ m.w @ m.w.T),
        (5,),
    ),
    Case("recurrent loop", Recurrent, (3, 3)),
    Case(
        "embedding called twice",
        made_of(e=lambda: nn.Embedding(6, 3))(lambda m, x: m.e(x[:, 0]) * m.e(x[:, 1:]).sum(1)),
        (3,),
        vocabulary=6,
    ),
]

FALLBACK = [
    Case(
        "bilinear",
        made_of(body=lambda: nn.Bilinear(5, 5, 4), head=lambda: nn.Linear(4, 3))(
            lambda m, x: m.head(m.body(x, x.tanh()))
        ),
        (5,),
        fallback=True,
    ),
    Case(
        "function of one's own",
        made_of(body=lambda: nn.Linear(5, 4), head=lambda: nn.Linear(4, 3))(
            lambda m, x: m.head(Squared.apply(m.body(x)))
        ),
        (5,),
        unlike=("curvlinops",),
        fallback=True,
    ),
    Case(
        "function of one's own of the only parameter",
        made_of(w=lambda: parameter(5, 3))(lambda m, x: (x[:, :, None] * Squared.apply(m.w)).sum(1)),
        (5,),
        unlike=("curvlinops",),
        fallback=True,
    ),
    Case("lstm cell", lambda: Cells(nn.LSTMCell), (2, 3)),
    Case("gru cell", lambda: Cells(nn.GRUCell), (2, 3)),
    Case(
        "einsum",
        made_of(w=lambda: parameter(4, 2, 3), head=lambda: nn.Linear(3, 3))(
            lambda m, x: m.head(torch.einsum("bsi,ijk,bsj->bk", x, m.w, x[..., :2]).tanh())
        ),
        TOKENS,
        fallback=True,
    ),
    Case(
        "spectral norm",
        lambda: nn.Sequential(spectral_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)),
        (5,),
        unlike=("curvlinops",),
        fallback=True,
    ),
    Case(
        "weight norm of a convolution",
        lambda: nn.Sequential(weight_norm(nn.Conv1d(3, 2, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)),
        (3, 5),
        unlike=("curvlinops",),
        fallback=True,
    ),
    Case(
        "bags of embeddings",
        lambda: nn.EmbeddingBag(6, 3, mode="mean"),
        (3,),
        vocabulary=6,
        unlike=("curvlinops",),
        fallback=True,
    ),
    Case("weight norm", _parametrised, (5,), unlike=("curvlinops",), fallback=True),
    Case(
        "masked weight",
        made_of(body=lambda: nn.Linear(5, 3))(
            lambda m, x: nn.functional.linear(x, m.body.weight * torch.ones(3, 5, dtype=x.dtype).tril(), m.body.bias)
        ),
        (5,),
        fallback=True,
    ),
    Case(
        "lstm",
        made_of(body=lambda: nn.LSTM(3, 3, batch_first=True), head=lambda: nn.Linear(3, 3))(
            lambda m, x: m.head(m.body(x)[0][:, -1])
        ),
        (2, 3),
    ),
]

RANDOM = [
    Case(
        "dropout",
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.3, inplace=True), nn.Linear(8, 3)
        ),
        (5,),
        unlike=("curvlinops",),
    ),
    Case(
        "dropout of maps",
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.Dropout1d(0.5), Mean(2), nn.Linear(6, 3)),
        (4, 6),
        unlike=("curvlinops",),
    ),
    Case(
        "dropout in an encoder",
        lambda: Encoder(norm_first=False, dropout=0.3),
        (5,),
        vocabulary=7,
        batch=3,
        unlike=("curvlinops",),
    ),
]
