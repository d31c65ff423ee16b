"""Operations with trained parameters, as torch's modules and functions have them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.host_client.curvature.exploration.operations import ANY, FIXED, Axes, Place, fold, one_of, operation

WIDTH = st.integers(1, 3)
BIAS = one_of(True, False)
TOKENS = Axes(("any", "fixed"), largest=3)
CHANNELS = Axes(("fixed", "any"), largest=4)
IMAGE = Axes(("fixed", "any", "any"), largest=4)


# Products with a matrix


@operation("nn.Linear", axis=FIXED, width=WIDTH, bias=BIAS)
def linear(at: Place, h: Tensor, axis: int, width: int, bias: bool) -> Tensor:
    layer = at.module("layer", lambda: nn.Linear(h.shape[axis], width, bias))
    return layer(h.movedim(axis, -1)).movedim(-1, axis)


@operation("F.linear", axis=FIXED)
def tied_linear(at: Place, h: Tensor, axis: int) -> Tensor:
    """An autoencoder whose decoder has the weight of its encoder."""
    weight = at.parameter("weight", 2, h.shape[axis])
    code = F.linear(h.movedim(axis, -1), weight).tanh()
    return F.linear(code, weight.T).movedim(-1, axis)


@operation("torch.matmul(h, parameter)", axis=FIXED, width=WIDTH)
def matmul(at: Place, h: Tensor, axis: int, width: int) -> Tensor:
    return (h.movedim(axis, -1) @ at.parameter("weight", h.shape[axis], width)).movedim(-1, axis)


@operation("torch.matmul(parameter, h)", axis=FIXED, width=WIDTH)
def matmul_from_the_left(at: Place, h: Tensor, axis: int, width: int) -> Tensor:
    folded, back = fold(h, axis)
    return back((at.parameter("weight", width, h.shape[axis]) @ folded.T).T)


@operation("torch.addmm", axis=FIXED, width=WIDTH)
def addmm(at: Place, h: Tensor, axis: int, width: int) -> Tensor:
    folded, back = fold(h, axis)
    weight, bias = at.parameter("weight", h.shape[axis], width), at.parameter("bias", width)
    return back(torch.addmm(bias, folded, weight))


@operation("torch.mv", axis=FIXED)
def mv(at: Place, h: Tensor, axis: int) -> Tensor:
    folded, back = fold(h, axis)
    return back(torch.mv(folded, at.parameter("vector", h.shape[axis])).unsqueeze(1))


@operation("torch.bmm", "torch.baddbmm", axes=Axes(("fixed", "fixed"), largest=3), added=one_of(True, False))
def bmm(at: Place, h: Tensor, axes: tuple[int, int], added: bool) -> Tensor:
    """A matrix for each slice along a fixed axis, as a mixture of experts has it."""
    folded, back = fold(h, *axes)
    count, width = folded.shape[1:]
    weight, slices = at.parameter("weight", count, width, width), folded.transpose(0, 1)
    if added:
        return back(torch.baddbmm(at.parameter("bias", count, 1, width), slices, weight, beta=0.5).transpose(0, 1))
    return back(torch.bmm(slices, weight).transpose(0, 1))


@operation("torch.einsum", axes=Axes(("any", "fixed"), largest=3))
def einsum(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    weight = at.parameter("weight", folded.shape[2], folded.shape[2])
    return back(torch.einsum("bti,ij,bsj->bts", folded, weight, folded.tanh()))


@operation("torch.tensordot", axis=FIXED, width=WIDTH)
def tensordot(at: Place, h: Tensor, axis: int, width: int) -> Tensor:
    weight = at.parameter("weight", h.shape[axis], width)
    return torch.tensordot(h, weight, ([axis], [0])).movedim(-1, axis)


@operation("nn.Bilinear", axis=Axes(("fixed",), largest=3), width=one_of(1, 2))
def bilinear(at: Place, h: Tensor, axis: int, width: int) -> Tensor:
    layer = at.module("layer", lambda: nn.Bilinear(h.shape[axis], h.shape[axis], width))
    moved = h.movedim(axis, -1).contiguous()
    return layer(moved, moved.tanh()).movedim(-1, axis)


@operation("nn.utils.parametrizations.weight_norm", axis=FIXED, width=WIDTH)
def weight_norm(at: Place, h: Tensor, axis: int, width: int) -> Tensor:
    layer = at.module("layer", lambda: parametrizations.weight_norm(nn.Linear(h.shape[axis], width)))
    return layer(h.movedim(axis, -1)).movedim(-1, axis)


@operation("nn.Linear", axis=FIXED)
def low_rank_adapter(at: Place, h: Tensor, axis: int) -> Tensor:
    """A frozen weight with a trained addition that starts at zero."""
    extent = h.shape[axis]
    base = at.module("base", lambda: nn.Linear(extent, extent).requires_grad_(False))
    down, up = at.parameter("down", extent, 1), at.parameter("up", 1, extent, value=0.0)
    moved = h.movedim(axis, -1)
    return (base(moved) + moved @ down @ up).movedim(-1, axis)


@operation("Tensor.view(parameter)", axis=FIXED)
def one_flat_parameter(at: Place, h: Tensor, axis: int) -> Tensor:
    """Weight and bias as views of one parameter."""
    extent = h.shape[axis]
    weight, bias = at.parameter("flat", extent * 2 + 2).split([extent * 2, 2])
    return F.linear(h.movedim(axis, -1), weight.view(2, extent), bias).movedim(-1, axis)


@operation("Tensor.__getitem__(parameter)", axis=ANY)
def rows_of_a_parameter(at: Place, h: Tensor, axis: int) -> Tensor:
    """Positional embeddings as far as the data reaches."""
    table = at.parameter("table", 48)  # as large as an axis can be
    return (h.movedim(axis, -1) + table[: h.shape[axis]]).movedim(-1, axis)


@operation("torch.index_select(parameter)", dims=(1, 5))
def rows_of_a_parameter_by_index(at: Place, h: Tensor) -> Tensor:
    return h * at.parameter("table", 4)[at.data.integers(4, *h.shape)]


# Elementwise


@operation("torch.add(parameter)", axis=FIXED)
def bias(at: Place, h: Tensor, axis: int) -> Tensor:
    return (h.movedim(axis, -1) + at.parameter("bias", h.shape[axis])).movedim(-1, axis)


@operation("torch.mul(parameter)", axis=FIXED)
def scale(at: Place, h: Tensor, axis: int) -> Tensor:
    return (h.movedim(axis, -1) * at.parameter("scale", h.shape[axis])).movedim(-1, axis)


@operation("torch.div(parameter)")
def temperature(at: Place, h: Tensor) -> Tensor:
    return h / at.parameter("temperature", value=1.5)


@operation("torch.pow(parameter)", axis=ANY)
def power_mean(at: Place, h: Tensor, axis: int) -> Tensor:
    power = at.parameter("power", 1, value=2.5)
    return h.sigmoid().pow(power).mean(axis, keepdim=True).pow(1 / power)


@operation("nn.PReLU", axis=FIXED)
def prelu(at: Place, h: Tensor, axis: int) -> Tensor:
    layer = at.module("layer", lambda: nn.PReLU(h.shape[axis]))
    folded, back = fold(h, axis)
    return back(layer(folded))


@operation("torch.mul(gate at zero)", axis=ANY)
def gate_at_zero(at: Place, h: Tensor, axis: int) -> Tensor:
    """Mixes along the axis only once it has been trained."""
    return h + at.parameter("gate", 1, value=0.0) * h.mean(axis, keepdim=True)


@operation("torch.mul(gate at zero)", axis=FIXED)
def attention_gate_at_zero(at: Place, h: Tensor, axis: int) -> Tensor:
    """Attention of everything to everything, behind a gate that starts at zero."""
    folded, back = fold(h, axis)
    weights = (folded @ folded.T).softmax(1)
    return back(folded + at.parameter("gate", h.shape[axis], value=0.0) * (weights @ folded))


@operation("torch.lerp(parameter)", axis=ANY)
def mix_with_the_next(at: Place, h: Tensor, axis: int) -> Tensor:
    return torch.lerp(h, h.roll(1, axis), at.parameter("weight", 1).sigmoid())


# Convolutions


@operation("F.conv1d", axes=CHANNELS, width=one_of(1, 2), dilation=one_of(1, 2), stride=one_of(1, 2))
def conv1d(at: Place, h: Tensor, axes: tuple[int, int], width: int, dilation: int, stride: int) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module(
        "layer", lambda: nn.Conv1d(folded.shape[1], width, 2, padding=1, dilation=dilation, stride=stride)
    )
    return back(layer(folded))


@operation("F.conv1d(groups)", axes=CHANNELS, multiple=one_of(1, 2))
def depthwise_conv1d(at: Place, h: Tensor, axes: tuple[int, int], multiple: int) -> Tensor:
    folded, back = fold(h, *axes)
    channels = folded.shape[1]
    layer = at.module("layer", lambda: nn.Conv1d(channels, multiple * channels, 2, padding=1, groups=channels))
    return back(layer(folded))


@operation("F.conv2d", axes=IMAGE, width=one_of(1, 2), stride=one_of(1, 2))
def conv2d(at: Place, h: Tensor, axes: tuple[int, int, int], width: int, stride: int) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module("layer", lambda: nn.Conv2d(folded.shape[1], width, 2, padding=1, stride=stride))
    return back(layer(folded))


@operation("F.conv2d(groups)", axes=IMAGE)
def depthwise_conv2d(at: Place, h: Tensor, axes: tuple[int, int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    channels = folded.shape[1]
    layer = at.module("layer", lambda: nn.Conv2d(channels, channels, (1, 2), padding=(0, 1), groups=channels))
    return back(layer(folded))


@operation("F.conv_transpose1d", axes=CHANNELS, stride=one_of(1, 2))
def conv_transpose1d(at: Place, h: Tensor, axes: tuple[int, int], stride: int) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module("layer", lambda: nn.ConvTranspose1d(folded.shape[1], 2, 2, stride=stride, padding=0))
    return back(layer(folded))


@operation("F.conv_transpose2d", axes=IMAGE)
def conv_transpose2d(at: Place, h: Tensor, axes: tuple[int, int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module("layer", lambda: nn.ConvTranspose2d(folded.shape[1], 1, (2, 1)))
    return back(layer(folded))


@operation("F.conv3d", axes=IMAGE)
def conv3d(at: Place, h: Tensor, axes: tuple[int, int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module("layer", lambda: nn.Conv3d(folded.shape[1], 1, (1, 2, 2), padding=(0, 1, 1)))
    return back(layer(folded.unsqueeze(2)).squeeze(2))


# Embeddings


@operation("F.embedding", axis=FIXED, dims=(2, 5), padding=one_of(None, 0))
def embedding(at: Place, h: Tensor, axis: int, padding: int | None) -> Tensor:
    layer = at.module("layer", lambda: nn.Embedding(4, h.shape[axis], padding_idx=padding))
    moved = h.movedim(axis, -1)
    return (moved + layer(at.data.integers(4, *moved.shape[:-1]))).movedim(-1, axis)


@operation("F.embedding", "F.linear", axis=FIXED, dims=(2, 5))
def tied_embedding(at: Place, h: Tensor, axis: int) -> Tensor:
    layer = at.module("layer", lambda: nn.Embedding(3, h.shape[axis]))
    moved = h.movedim(axis, -1)
    return F.linear(moved * layer(at.data.integers(3, *moved.shape[:-1])), layer.weight).movedim(-1, axis)


@operation("F.embedding_bag", axis=FIXED, mode=one_of("sum", "mean", "max"), weighted=one_of(True, False))
def embedding_bag(at: Place, h: Tensor, axis: int, mode: str, weighted: bool) -> Tensor:
    folded, back = fold(h, axis)
    layer = at.module("layer", lambda: nn.EmbeddingBag(4, h.shape[axis], mode=mode))
    lengths = 1 + at.data.integers(2, len(folded))
    indices = at.data.integers(4, int(lengths.sum()))
    weights = at.data.normal(len(indices)) if weighted and mode == "sum" else None
    return back(folded + layer(indices, lengths.cumsum(0) - lengths, per_sample_weights=weights))


# Norms


@operation("F.layer_norm", axis=FIXED)
def layer_norm(at: Place, h: Tensor, axis: int) -> Tensor:
    layer = at.module("layer", lambda: nn.LayerNorm(h.shape[axis], eps=0.1))
    return layer(h.movedim(axis, -1)).movedim(-1, axis)


@operation("F.rms_norm", axis=FIXED)
def rms_norm(at: Place, h: Tensor, axis: int) -> Tensor:
    layer = at.module("layer", lambda: nn.RMSNorm(h.shape[axis], eps=0.1))
    return layer(h.movedim(axis, -1)).movedim(-1, axis)


@operation("F.group_norm", axes=Axes(("fixed", "any"), smallest=2))
def group_norm(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module("layer", lambda: nn.GroupNorm(1, folded.shape[1], eps=0.1))
    return back(layer(folded))


@operation("F.instance_norm", axes=Axes(("fixed", "any"), smallest=2))
def instance_norm(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module("layer", lambda: nn.InstanceNorm1d(folded.shape[1], eps=0.1, affine=True))
    return back(layer(folded))


@operation("F.batch_norm(eval)", axes=Axes(("fixed", "any")))
def batch_norm_in_evaluation_mode(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module("layer", lambda: nn.BatchNorm1d(folded.shape[1], eps=0.1))
    return back(layer.eval()(folded))


@operation("F.batch_norm(training)", axes=Axes(("fixed", "any"), smallest=2), tracked=one_of(True, False))
def batch_norm(at: Place, h: Tensor, axes: tuple[int, int], tracked: bool) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module("layer", lambda: nn.BatchNorm1d(folded.shape[1], eps=0.1, track_running_stats=tracked))
    return back(layer(folded))


# Sequences


@operation("nn.RNN", axes=TOKENS)
def recurrent(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module("layer", lambda: nn.RNN(folded.shape[2], 2, batch_first=True))
    return back(layer(folded)[0])


@operation("nn.GRU", axes=TOKENS)
def gated_recurrent_sequence_first(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module("layer", lambda: nn.GRU(folded.shape[2], 1))
    return back(layer(folded.transpose(0, 1))[0].transpose(0, 1))


@operation(
    "nn.utils.rnn.pack_padded_sequence",
    "nn.utils.rnn.pad_packed_sequence",
    "nn.LSTM",
    axes=TOKENS,
    kind=one_of("RNN", "GRU", "LSTM"),
    last=one_of(True, False),
)
def packed_recurrent(at: Place, h: Tensor, axes: tuple[int, int], kind: str, last: bool) -> Tensor:
    """Sequences of lengths that change from pass to pass; all states, or the last ones."""
    folded, back = fold(h, *axes)
    samples, tokens, features = folded.shape
    layer = at.module("layer", lambda: getattr(nn, kind)(features, 1, batch_first=True))
    lengths = 1 + at.data.integers(tokens, samples)
    states, final = layer(pack_padded_sequence(folded, lengths, batch_first=True, enforce_sorted=False))
    if last:
        final = final[0] if kind == "LSTM" else final
        return back(final.transpose(0, 1))
    return back(pad_packed_sequence(states, batch_first=True, total_length=tokens)[0])


@operation("nn.GRUCell", axes=TOKENS)
def recurrent_cell_in_a_loop(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    cell = at.module("cell", lambda: nn.GRUCell(folded.shape[2], 1))
    state, states = folded.new_zeros(len(folded), 1), []
    for token in folded.unbind(1):
        state = cell(token, state)
        states.append(state)
    return back(torch.stack(states, 1))


@operation(
    "nn.MultiheadAttention", axes=Axes(("any", "fixed"), largest=2), batch_first=one_of(True, False), padded=BIAS
)
def multihead_attention(at: Place, h: Tensor, axes: tuple[int, int], batch_first: bool, padded: bool) -> Tensor:
    folded, back = fold(h, *axes)
    layer = at.module("layer", lambda: nn.MultiheadAttention(folded.shape[2], 1, batch_first=batch_first))
    tokens = folded if batch_first else folded.transpose(0, 1)
    padding = None
    if padded:
        padding = at.data.mask(*folded.shape[:2])
        padding[:, 0] = False
    result = layer(tokens, tokens, tokens, key_padding_mask=padding, need_weights=False)[0]
    return back(result if batch_first else result.transpose(0, 1))


@operation("nn.TransformerEncoderLayer", axes=Axes(("any", "fixed"), largest=2), batch_first=one_of(True, False))
def transformer_layer(at: Place, h: Tensor, axes: tuple[int, int], batch_first: bool) -> Tensor:
    folded, back = fold(h, *axes)
    width = folded.shape[2]
    layer = at.module(
        "layer",
        lambda: nn.TransformerEncoderLayer(width, 1, 2, dropout=0.0, layer_norm_eps=0.1, batch_first=batch_first),
    )
    return back(layer(folded) if batch_first else layer(folded.transpose(0, 1)).transpose(0, 1))


@operation("F.scaled_dot_product_attention", axes=TOKENS)
def attention_to_learnt_keys(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    keys = at.parameter("keys", 2, folded.shape[2]).expand(len(folded), -1, -1)
    return back(F.scaled_dot_product_attention(folded, keys, keys.tanh()))


@operation("Tensor.expand(parameter)", "torch.cat", axes=TOKENS)
def class_token(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    token = at.parameter("token", 1, 1, folded.shape[2]).expand(len(folded), -1, -1)
    return back(torch.cat([token, folded], 1))


# Parameters that not every pass uses


@operation("Tensor.__getitem__(mask)", "torch.index_put", axis=FIXED)
def experts(at: Place, h: Tensor, axis: int) -> Tensor:
    """Two experts, one of which may get nothing."""
    folded, back = fold(h, axis)
    scales = at.parameter("first", h.shape[axis]), at.parameter("second", h.shape[axis])
    expert = at.data.integers(2, len(folded)) * int(at.data.integers(2, 1))
    result = torch.zeros_like(folded)
    for number, expert_scale in enumerate(scales):
        chosen = expert == number
        if chosen.any():
            result[chosen] = (folded[chosen] * expert_scale).tanh()
    return back(result)


@operation("torch.mul(parameter)")
def parameters_by_turns(at: Place, h: Tensor) -> Tensor:
    scales = at.parameter("first", 1), at.parameter("second", 1)
    return h * scales[int(at.data.integers(2, 1))]


@operation("torch.mul(parameter, detached)")
def stopped_gradient(at: Place, h: Tensor) -> Tensor:
    """One parameter gets no gradient at all, the other only part of it."""
    dead, alive = at.parameter("dead", 1), at.parameter("alive", 1)
    return h * dead.detach() + alive.detach() * alive
