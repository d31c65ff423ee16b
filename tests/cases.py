"""Models, losses and data that every test of the curvature runs over: one case for each way a layer can be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests import public
from tests.networks import (
    Attention,
    Cells,
    Encoder,
    Function,
    Mean,
    Recurrent,
    Residual,
    TiedAutoencoder,
    TwoHeads,
    parameter,
    scaled,
)


def labels(outputs: Tensor) -> Tensor:
    """Class indices for outputs of shape (b, d, …)."""
    return torch.randint(outputs.shape[1], (len(outputs), *outputs.shape[2:]))


def partly_ignored(outputs: Tensor) -> Tensor:
    """Class indices, every third of which a cross-entropy leaves out by default."""
    targets = labels(outputs)
    targets.view(-1)[::3] = -100
    return targets


def probabilities(outputs: Tensor) -> Tensor:
    """A distribution over the classes for outputs of shape (b, d, …)."""
    return torch.randn_like(outputs).softmax(1)


def binary(outputs: Tensor) -> Tensor:
    """Zeros and ones, as many as outputs."""
    return torch.randint(2, outputs.shape).to(outputs)


def real(outputs: Tensor) -> Tensor:
    """Real numbers, as many as outputs."""
    return torch.randn_like(outputs)


@dataclass(frozen=True)
class Case:
    """A small problem.

    Attributes:
        name: what is special about it.
        build: makes the network.
        sample: shape of one input.
        classes: d.
        batch: b.
        reduction: of the criterion.
        frozen: paths of parameters that are not trained.
        vocabulary: inputs are tokens below this; None for real numbers.
        call: what the criterion is given, from the network and its inputs; by default the network's output.
        criterion: makes the loss; its tensors are made in the case's dtype.
        targets: draws them for given outputs.
        unlike: oracles that do not cover the case: "curvlinops", where torch lacks forward derivatives, has wrong ones
            (padded embeddings), or where each pass is another.
        tolerance: relative error of the curvature in float64; more where the network itself computes in float32.
    """

    name: str
    build: Callable[[], nn.Module]
    sample: Sequence[int]
    classes: int = 3
    batch: int = 4
    reduction: str = "mean"
    frozen: Sequence[str] = ()
    vocabulary: int | None = None
    call: Callable[[nn.Module, Tensor], Tensor] | None = None
    criterion: Callable[..., nn.Module] = nn.CrossEntropyLoss
    targets: Callable[[Tensor], Tensor] = labels
    unlike: Sequence[str] = ()
    tolerance: float = 1e-10

    def problem(self, dtype: torch.dtype = torch.float64, batch: int | None = None) -> Problem:
        """The case with values, the same each time, for so many samples."""
        b = self.batch if batch is None else batch
        # The state of the global generator is the test's own business.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build().to(dtype)
            for path in self.frozen:
                model.get_parameter(path).requires_grad_(False)
            if self.vocabulary is None:
                inputs = torch.randn(b, *self.sample, dtype=dtype)
            else:
                inputs = torch.randint(self.vocabulary, (b, *self.sample))
            criterion = self.criterion(reduction=self.reduction).to(dtype)
            problem = Problem(model, criterion, inputs, torch.empty(0), self.call)
            with torch.no_grad():
                targets = self.targets(problem.outputs())
        return Problem(model, criterion, inputs, targets, self.call)

    @property
    def plain(self) -> bool:
        """Whether this is a cross-entropy of class indices, all of one weight, on what the network returns: (b, d)."""
        return self.call is None and self.criterion is nn.CrossEntropyLoss and self.targets is labels


@dataclass(frozen=True)
class Problem:
    """A network in training mode, its loss, and a batch."""

    model: nn.Module
    criterion: nn.Module
    inputs: Tensor
    targets: Tensor
    call: Callable[[nn.Module, Tensor], Tensor] | None = None

    def outputs(self) -> Tensor:
        """What the criterion is given, by a forward pass."""
        outputs: Tensor = self.model(self.inputs) if self.call is None else self.call(self.model, self.inputs)
        return outputs

    def loss(self) -> Tensor:
        """The loss, by a forward pass."""
        loss: Tensor = self.criterion(self.outputs(), self.targets)
        return loss

    @property
    def trained(self) -> list[nn.Parameter]:
        """The trained parameters, each once."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def part(self, samples: slice) -> Problem:
        """The same network and loss on some of the samples."""
        rows = len(self.targets) // len(self.inputs)  # several a sample where a sequence is flattened into the batch
        targets = self.targets.unflatten(0, (-1, rows))[samples].flatten(0, 1)
        return Problem(self.model, self.criterion, self.inputs[samples], targets, self.call)


IMAGE = (4, 7, 6)
"""Channels, height and width: no two alike."""

TOKENS = (5, 4)
"""Tokens and features."""


def _convolutional(kind: type[nn.Module] = nn.Conv2d, image: Sequence[int] = IMAGE, **options: Any) -> Any:
    """A convolution with these options before a linear layer."""
    options = {"in_channels": image[0], "out_channels": 6, "kernel_size": 3, **options}

    def build() -> nn.Module:
        convolution = kind(**options)
        features = convolution(torch.zeros(1, *image)).numel()
        return nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3))

    return build


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 3))


def _pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 3, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        Residual(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True))),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
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


def _parametrised() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3))


def _same_twice() -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 3))


def _shared_weight() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    model[2].weight = model[0].weight
    return model


def _sequence(classes: int = 3) -> nn.Module:
    """Scores of shape (b, s, d)."""
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, classes))


def _with(
    **parts: Callable[[], nn.Module | nn.Parameter],
) -> Callable[[Callable[..., Tensor]], Callable[[], nn.Module]]:
    return lambda forward: lambda: Function(forward, **{name: make() for name, make in parts.items()})


def _classes_second(model: nn.Module, x: Tensor) -> Tensor:
    """(b, s, d) as (b, d, s), which the cross-entropy takes."""
    scores: Tensor = model(x)
    return scores.transpose(1, 2)


def _flattened(model: nn.Module, x: Tensor) -> Tensor:
    """(b, s, d) as (b·s, d), as most training loops do it."""
    scores: Tensor = model(x)
    return scores.flatten(0, 1)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Of a model of ``transformers``."""
    logits: Tensor = model(x).logits
    return logits


def _next_token(model: nn.Module, x: Tensor) -> Tensor:
    """Of a language model of ``transformers``: scores of all tokens but the last, (b·(s − 1), d)."""
    logits: Tensor = model(input_ids=x).logits
    return logits[:, :-1].flatten(0, 1)


def _cross_entropy(**options: Any) -> Callable[..., nn.Module]:
    return lambda reduction: nn.CrossEntropyLoss(reduction=reduction, **options)


def _weighted_bce(reduction: str) -> nn.Module:
    return nn.BCEWithLogitsLoss(
        reduction=reduction, pos_weight=torch.tensor([0.5, 2.0, 3.0]), weight=torch.tensor([1.0, 0.2, 2.0])
    )


WEIGHTS = torch.tensor([0.2, 1.0, 3.0])
"""Of three classes."""

LINEAR = [
    Case("linear layer as the model", lambda: nn.Linear(5, 3), (5,)),
    Case("linear without bias", lambda: nn.Linear(5, 3, bias=False), (5,)),
    Case("mlp", _mlp, (5,)),
    Case("sum over the batch", _mlp, (5,), reduction="sum"),
    Case("two classes", lambda: nn.Linear(5, 2), (5,), classes=2),
    Case("batch of one", _mlp, (5,), batch=1),
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
        _with(body=lambda: nn.Linear(4, 3))(lambda m, x: m.body(x.reshape(-1, 4)).tanh().view(len(x), -1, 3).sum(1)),
        TOKENS,
    ),
    Case(
        "linear on tokens before the samples",
        _with(body=lambda: nn.Linear(4, 3))(lambda m, x: m.body(x.transpose(0, 1)).tanh().mean(0)),
        TOKENS,
    ),
    Case(
        "linear on tokens folded before the samples",
        _with(body=lambda: nn.Linear(4, 3))(
            lambda m, x: m.body(x.transpose(0, 1).reshape(-1, 4)).tanh().view(-1, len(x), 3).sum(0)
        ),
        TOKENS,
    ),
    Case(
        "matrix product with a parameter",
        _with(a=lambda: parameter(5, 4), b=lambda: parameter(3, 4))(lambda m, x: (x @ m.a).tanh().matmul(m.b.T)),
        (5,),
    ),
]

CONVOLUTION = [
    Case("convolution", _convolutional(), IMAGE),
    Case("convolution without bias", _convolutional(bias=False), IMAGE),
    Case("convolution, explicit rows", _convolutional(out_channels=2, kernel_size=1), IMAGE),
    Case("stride", _convolutional(stride=(2, 3)), IMAGE),
    Case("padding", _convolutional(padding=(2, 1)), IMAGE),
    Case("padding same", _convolutional(padding="same"), IMAGE),
    Case("padding same, even extent", _convolutional(padding="same", kernel_size=(2, 4), dilation=(1, 3)), IMAGE),
    Case("padding valid", _convolutional(padding="valid"), IMAGE),
    Case("padding circular", _convolutional(padding=(2, 1), padding_mode="circular"), IMAGE),
    Case("padding reflect", _convolutional(padding="same", padding_mode="reflect"), IMAGE),
    Case("dilation", _convolutional(dilation=(2, 1), kernel_size=(3, 2)), IMAGE),
    Case("groups", _convolutional(groups=2), IMAGE),
    Case("depthwise", _convolutional(groups=4, out_channels=8), IMAGE),
    Case("everything", _convolutional(groups=2, stride=2, padding=2, dilation=2, kernel_size=(3, 2)), IMAGE),
    Case("pooling, residual, in place", _pooled, IMAGE),
    Case("convolution in 1d", _convolutional(nn.Conv1d, (4, 9), stride=2, padding=1, groups=2), (4, 9)),
    Case(
        "convolution in 1d, replicated", _convolutional(nn.Conv1d, (4, 9), padding=2, padding_mode="replicate"), (4, 9)
    ),
    Case(
        "convolution in 3d",
        _convolutional(nn.Conv3d, (2, 2, 3, 4), kernel_size=(1, 2, 3), padding=(0, 1, 1)),
        (2, 2, 3, 4),
    ),
    Case(
        "convolution in 3d, strided, no bias",
        _convolutional(nn.Conv3d, (2, 3, 4, 5), kernel_size=2, stride=(1, 2, 2), bias=False),
        (2, 3, 4, 5),
    ),
    Case("transposed in 1d", _convolutional(nn.ConvTranspose1d, (4, 5), stride=2, padding=1), (4, 5)),
    Case(
        "transposed in 2d",
        _convolutional(
            nn.ConvTranspose2d, (4, 3, 2), stride=(2, 1), padding=1, output_padding=(1, 0), dilation=(1, 2), groups=2
        ),
        (4, 3, 2),
    ),
    Case("transposed without bias", _convolutional(nn.ConvTranspose2d, (4, 3, 2), bias=False), (4, 3, 2)),
    Case("transposed in 3d", _convolutional(nn.ConvTranspose3d, (2, 2, 1, 3), kernel_size=2), (2, 2, 1, 3)),
    Case(
        "channels last in memory",
        lambda: _convolutional()().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        IMAGE,
        call=lambda model, x: model(x.contiguous(memory_format=torch.channels_last)),
    ),
    Case(
        "convolution twice",
        lambda: nn.Sequential(
            *(layer for layer in [nn.Conv2d(4, 4, 3, padding=1)] for _ in range(2)), nn.Flatten(), nn.Linear(168, 3)
        ),
        IMAGE,
    ),
]

EMBEDDING = [
    Case("embedding", _embedded(), (5,), vocabulary=6),
    Case("embedding with padding", _embedded(padding_idx=2), (5,), vocabulary=6, unlike=("curvlinops",)),
    Case("embedding as the model", lambda: nn.Embedding(6, 3), (), vocabulary=6),
    Case("embedding of pictures", lambda: nn.Sequential(nn.Embedding(6, 3), Mean(1), Mean(1)), (3, 2), vocabulary=6),
    Case(
        "positions as a parameter",
        _with(p=lambda: parameter(5, 4), head=lambda: nn.Linear(4, 3))(lambda m, x: m.head((x + m.p).tanh().mean(1))),
        TOKENS,
    ),
    Case(
        "positions as a parameter with a batch axis",
        _with(p=lambda: parameter(1, 5, 4), head=lambda: nn.Linear(4, 3))(
            lambda m, x: m.head((m.p[:, : x.shape[1]] * 2 + x).tanh().mean(1))
        ),
        TOKENS,
    ),
    Case(
        "positions as an embedding",
        _with(p=lambda: nn.Embedding(7, 4), head=lambda: nn.Linear(4, 3))(
            lambda m, x: m.head((x + m.p(torch.arange(x.shape[1])[None])).tanh().mean(1))
        ),
        TOKENS,
    ),
    Case(
        "class token",
        _with(t=lambda: parameter(1, 1, 4), head=lambda: nn.Linear(4, 3))(
            lambda m, x: m.head(torch.cat([m.t.expand(len(x), -1, -1), x], 1).softmax(1).square().sum(1).tanh())
        ),
        TOKENS,
    ),
    Case("embedding tied to the output", lambda: TiedAutoencoder(5, 3), (4,), vocabulary=5, classes=5, batch=3),
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
        _with(
            body=lambda: nn.Linear(5, 3),
            scale=lambda: parameter(3),
            bias=lambda: parameter(3),
            temperature=lambda: parameter(),
        )(scaled),
        (5,),
    ),
    Case(
        "bias alone",
        _with(body=lambda: nn.Linear(5, 3).requires_grad_(False), bias=lambda: parameter(3))(
            lambda m, x: m.body(x) + m.bias
        ),
        (5,),
    ),
    Case(
        "scale alone",
        _with(body=lambda: nn.Linear(5, 3).requires_grad_(False), scale=lambda: parameter(3))(
            lambda m, x: m.scale * m.body(x)
        ),
        (5,),
    ),
    Case(
        "scale of tokens in place",
        _with(body=lambda: nn.Linear(4, 3), scale=lambda: parameter(1, 1, 3))(
            lambda m, x: m.body(x).mul_(m.scale).mean(1)
        ),
        TOKENS,
    ),
    Case(
        "bias of tokens in place",
        _with(body=lambda: nn.Linear(4, 3), bias=lambda: parameter(5, 1), shift=lambda: parameter(1))(
            lambda m, x: (m.body(x).add_(m.bias) - m.shift).tanh().mean(1)
        ),
        TOKENS,
    ),
    Case(
        "gate of a residual branch",
        _with(body=lambda: nn.Linear(5, 5), gate=lambda: parameter(), head=lambda: nn.Linear(5, 3))(
            lambda m, x: m.head(x + m.gate * m.body(x).tanh())
        ),
        (5,),
    ),
    Case(
        "quotient and difference",
        _with(body=lambda: nn.Linear(5, 3), a=lambda: parameter(3), b=lambda: parameter(1))(
            lambda m, x: (1 - m.a) / (m.body(x).exp() + m.b.exp()) - x[:, :3] / m.a.exp()
        ),
        (5,),
    ),
    Case("prelu", lambda: nn.Sequential(nn.Linear(5, 4), nn.PReLU(4), nn.Linear(4, 3), nn.PReLU()), (5,)),
]

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
        _with(
            queries=lambda: parameter(1, 2, 4),
            attention=lambda: nn.MultiheadAttention(4, 2, batch_first=True),
            head=lambda: nn.Linear(4, 3),
        )(lambda m, x: m.head(m.attention(m.queries.expand(len(x), -1, -1), x, x)[0].tanh().mean(1))),
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
        _with(w=lambda: parameter(3, 5))(lambda m, x: (x @ m.w.T).tanh() @ m.w @ m.w.T),
        (5,),
    ),
    Case("recurrent loop", Recurrent, (3, 3)),
    Case(
        "embedding called twice",
        _with(e=lambda: nn.Embedding(6, 3))(lambda m, x: m.e(x[:, 0]) * m.e(x[:, 1:]).sum(1)),
        (3,),
        vocabulary=6,
    ),
]

FALLBACK = [
    Case(
        "bilinear",
        _with(body=lambda: nn.Bilinear(5, 5, 4), head=lambda: nn.Linear(4, 3))(
            lambda m, x: m.head(m.body(x, x.tanh()))
        ),
        (5,),
    ),
    Case("lstm cell", lambda: Cells(nn.LSTMCell), (2, 3)),
    Case("gru cell", lambda: Cells(nn.GRUCell), (2, 3)),
    Case(
        "einsum",
        _with(w=lambda: parameter(4, 2, 3), head=lambda: nn.Linear(3, 3))(
            lambda m, x: m.head(torch.einsum("bsi,ijk,bsj->bk", x, m.w, x[..., :2]).tanh())
        ),
        TOKENS,
    ),
    Case(
        "spectral norm",
        lambda: nn.Sequential(spectral_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)),
        (5,),
        unlike=("curvlinops",),
    ),
    Case(
        "weight norm of a convolution",
        lambda: nn.Sequential(weight_norm(nn.Conv1d(3, 2, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)),
        (3, 5),
        unlike=("curvlinops",),
    ),
    Case("bags of embeddings", lambda: nn.EmbeddingBag(6, 3, mode="mean"), (3,), vocabulary=6, unlike=("curvlinops",)),
    Case("weight norm", _parametrised, (5,), unlike=("curvlinops",)),
    Case(
        "masked weight",
        _with(body=lambda: nn.Linear(5, 3))(
            lambda m, x: nn.functional.linear(x, m.body.weight * torch.ones(3, 5, dtype=x.dtype).tril(), m.body.bias)
        ),
        (5,),
    ),
    Case(
        "lstm",
        _with(body=lambda: nn.LSTM(3, 3, batch_first=True), head=lambda: nn.Linear(3, 3))(
            lambda m, x: m.head(m.body(x)[0][:, -1])
        ),
        (2, 3),
    ),
]

FROZEN = [
    Case("frozen layer", _mlp, (5,), frozen=("0.weight", "0.bias")),
    Case("frozen layer in between", _mlp, (5,), frozen=("2.weight",)),
    Case("frozen linear weight", _mlp, (5,), frozen=("0.weight",)),
    Case("frozen bias", _mlp, (5,), frozen=("4.bias",)),
    Case("frozen convolution weight", _convolutional(), IMAGE, frozen=("0.weight",)),
    Case("frozen embedding", _embedded(), (5,), vocabulary=6, frozen=("0.weight",)),
    Case(
        "frozen projection of attention",
        lambda: Attention(batch_first=True),
        TOKENS,
        batch=3,
        frozen=("attention.in_proj_weight", "attention.in_proj_bias"),
    ),
]

LOSSES = [
    Case("class weights", _mlp, (5,), criterion=_cross_entropy(weight=WEIGHTS)),
    Case("class weights, sum", _mlp, (5,), criterion=_cross_entropy(weight=WEIGHTS), reduction="sum"),
    Case("label smoothing", _mlp, (5,), criterion=_cross_entropy(label_smoothing=0.2)),
    Case(
        "class weights and label smoothing", _mlp, (5,), criterion=_cross_entropy(weight=WEIGHTS, label_smoothing=0.2)
    ),
    Case("ignored targets", _mlp, (5,), targets=partly_ignored),
    Case("ignored targets, sum", _mlp, (5,), targets=partly_ignored, reduction="sum"),
    Case("ignored class and weights", _mlp, (5,), criterion=_cross_entropy(ignore_index=1, weight=WEIGHTS)),
    Case("probabilities as targets", _mlp, (5,), targets=probabilities),
    Case(
        "probabilities, weights, smoothing",
        _mlp,
        (5,),
        targets=probabilities,
        criterion=_cross_entropy(weight=WEIGHTS, label_smoothing=0.2),
    ),
    *[
        Case(
            f"{name}, {reduction}{'' if options is None else ', ' + options}",
            _sequence,
            TOKENS,
            call=call,
            reduction=reduction,
            batch=3,
            **extra,
        )
        for name, call in [("sequence", _classes_second), ("flattened sequence", _flattened)]
        for reduction in ("mean", "sum")
        for options, extra in [
            (None, {}),
            ("weights and ignored", {"criterion": _cross_entropy(weight=WEIGHTS), "targets": partly_ignored}),
            ("probabilities", {"targets": probabilities}),
        ]
    ],
    Case("pictures of classes", lambda: nn.Conv2d(4, 3, 3), (4, 4, 3)),
    Case("binary", _mlp, (5,), criterion=nn.BCEWithLogitsLoss, targets=binary),
    Case("binary, sum", _mlp, (5,), criterion=nn.BCEWithLogitsLoss, targets=binary, reduction="sum"),
    Case("binary with weights", _mlp, (5,), criterion=_weighted_bce, targets=binary),
    Case("one binary output", lambda: nn.Linear(5, 1), (5,), classes=1, criterion=nn.BCEWithLogitsLoss, targets=binary),
    Case("binary sequence", _sequence, TOKENS, batch=3, criterion=nn.BCEWithLogitsLoss, targets=binary),
    Case("squared error", _mlp, (5,), criterion=nn.MSELoss, targets=real),
    Case("squared error, sum", _mlp, (5,), criterion=nn.MSELoss, targets=real, reduction="sum"),
    Case("one real output", lambda: nn.Linear(5, 1), (5,), classes=1, criterion=nn.MSELoss, targets=real),
    Case("squared error of tokens", _sequence, TOKENS, batch=3, criterion=nn.MSELoss, targets=real),
    Case(
        "squared error of a picture", lambda: nn.ConvTranspose2d(4, 1, 2), (4, 2, 2), criterion=nn.MSELoss, targets=real
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

CASES = [
    *LINEAR,
    *CONVOLUTION,
    *EMBEDDING,
    *NORMALISATION,
    *PARAMETERS,
    *ATTENTION,
    *TRANSFORMERS,
    *SHARING,
    *FALLBACK,
    *FROZEN,
    *LOSSES,
    *RANDOM,
]
