"""Small networks, one for each way in which a parameter can be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Function(nn.Module):
    """A network whose forward pass is given as a function of itself and its input.

    Args:
        forward: the function.
        parts: submodules and parameters by name.
    """

    def __init__(self, forward: Callable[[Function, Any], Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Any) -> Any:
        """The function of itself and the input."""
        return self.function(self, x)


def parameter(*shape: int) -> nn.Parameter:
    """A parameter of order one, with no two elements alike."""
    return nn.Parameter(1.0 + 0.5 * torch.randn(shape))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """The input and its change."""
        return x + self.body(x)


class TwoHeads(nn.Module):
    """Logits as the sum of two branches, one of which is declared first and called last."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(6, 3)
        self.early = nn.Linear(5, 6)
        self.skip = nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Both branches, called with a keyword."""
        return self.skip(input=x) + self.late(torch.tanh(self.early(input=x)))


class Mean(nn.Module):
    """The mean over an axis."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Over that axis."""
        return x.mean(self.axis)


class Attention(nn.Module):
    """Attention of tokens (b, s, 4) to themselves, or to two projections of them, as torch writes it; their mean."""

    def __init__(self, *, batch_first: bool, cross: bool = False, need_weights: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            4, 2, batch_first=batch_first, kdim=3 if cross else None, vdim=5 if cross else None
        )
        self.cross, self.need_weights = cross, need_weights
        if cross:
            self.key, self.value = nn.Linear(4, 3), nn.Linear(4, 5)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (b, 3)."""
        axis = 1 if self.attention.batch_first else 0
        x = x if self.attention.batch_first else x.transpose(0, 1)
        # Another number of keys than of queries.
        key = self.key(x.narrow(axis, 0, 2)) if self.cross else x
        value = self.value(x.narrow(axis, 0, 2)) if self.cross else x
        y, _ = self.attention(x, key, value, need_weights=self.need_weights)
        logits: Tensor = self.head(torch.tanh(y).mean(axis))
        return logits


class TiedAutoencoder(nn.Module):
    """Tokens in and tokens out by one matrix, with a bias of its own at the output."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.body = nn.Linear(width, width)
        self.output = nn.Linear(width, tokens)
        self.output.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (b, tokens, s), as a cross-entropy over sequences takes them."""
        scores: Tensor = self.output(torch.tanh(self.body(self.embedding(x))))
        return scores.transpose(1, 2)


class Encoder(nn.Module):
    """Token and learnt positional embeddings, a layer of torch's encoder, and a head on the first token."""

    def __init__(self, *, norm_first: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4, padding_idx=0)
        self.positions = nn.Embedding(6, 4)
        self.layer = nn.TransformerEncoderLayer(
            4, 2, dim_feedforward=5, dropout=dropout, batch_first=True, norm_first=norm_first
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (b, 3)."""
        places = torch.arange(x.shape[1], device=x.device)
        hidden = self.layer(self.tokens(x) + self.positions(places), src_key_padding_mask=x == 0)
        logits: Tensor = self.head(hidden[:, 0])
        return logits


class Recurrent(nn.Module):
    """An Elman network written as a loop over the tokens (b, s, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (b, 3)."""
        state = x.new_zeros(len(x), 4)
        for token in x.unbind(1):
            state = torch.tanh(self.inner(token) + self.outer(state))
        logits: Tensor = self.head(state)
        return logits


class Cells(nn.Module):
    """A recurrent cell of torch over the tokens (b, s, 3)."""

    def __init__(self, cell: type[nn.LSTMCell | nn.GRUCell | nn.RNNCell]) -> None:
        super().__init__()
        self.cell = cell(3, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (b, 3)."""
        state: Tensor | tuple[Tensor, Tensor] | None = None
        for token in x.unbind(1):
            state = self.cell(token, state)
        logits: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return logits


class Squared(torch.autograd.Function):
    """x² in numpy, which neither torch's dispatch nor vmap can look into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x²."""
        ctx.save_for_backward(x)
        return torch.from_numpy(np.square(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """2x times the gradient."""
        (x,) = ctx.saved_tensors
        return torch.from_numpy(2 * x.detach().numpy() * gradient.numpy())


def scaled(model: Function, x: Tensor) -> Tensor:
    """A scale, a bias, and a scalar scale of logits."""
    return (F.softplus(model.body(x)) * model.scale + model.bias) * model.temperature.exp()  # type: ignore[operator]


class ConstantStatistics(nn.Module):
    """A batch norm whose statistics are those of the batch, but constants to autograd."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, scaled and shifted by hand."""
        over = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean, variance = x.detach().mean(over).view(shape), x.detach().var(over, unbiased=False).view(shape)
        normal = (x - mean) / (variance + self.eps).sqrt()
        return normal if self.weight is None else normal * self.weight.view(shape) + self.bias.view(shape)
