"""Language models of tokens (s, b), in the layouts that torch's modules have by default."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.host_client.kinds.reference import assert_curvature

VOCABULARY, TOKENS, SAMPLES = 5, 3, 2


class Language(nn.Module):
    """Logits (s, b, V) of tokens (s, b), by torch's encoder in its default layout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 4)
        layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=4, dropout=0.0)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(4, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Causal."""
        mask = nn.Transformer.generate_square_subsequent_mask(len(tokens), dtype=self.head.weight.dtype)
        logits: Tensor = self.head(self.encoder(self.embedding(tokens), mask=mask, is_causal=True))
        return logits


class Recurrent(nn.Module):
    """Logits (s, b, V) of tokens (s, b), by a recurrent network in its default layout."""

    def __init__(self, cell: type[nn.LSTM | nn.GRU | nn.RNN]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 4)
        self.cell, self.head = cell(4, 3), nn.Linear(3, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """From a state of zeros."""
        states, _ = self.cell(self.embedding(tokens))
        logits: Tensor = self.head(states)
        return logits


SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "TransformerEncoder": Language,
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
}
FLATTENED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "view(-1, V)": (lambda z: z.view(-1, VOCABULARY), lambda y: y.reshape(-1)),
    "flatten(0, 1)": (lambda z: z.flatten(0, 1), lambda y: y.flatten()),
    "permute(1, 2, 0)": (lambda z: z.permute(1, 2, 0), lambda y: y.T),
    "the last token": (lambda z: z[-1], lambda y: y[-1]),
}


def assert_tokens_before_samples(name: str, flattened: str) -> None:
    """Three batches of other lengths, each with the F of the flattened logits."""
    of_logits, of_labels = FLATTENED[flattened]
    batches = []
    for samples, tokens in ((SAMPLES, TOKENS), (3, 2), (2, 2)):
        x = torch.arange(tokens * samples).view(tokens, samples) * 3 % VOCABULARY
        batches.append((x, of_labels((x + 1) % VOCABULARY)))
    assert_curvature(SEQUENCES[name]().double(), batches, lambda m, x: of_logits(m(x)))
