"""A frozen pretrained encoder with LoRA, and a linear head that says where an answer begins and ends."""

from __future__ import annotations

import warnings
from pathlib import Path

from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

RANK, ALPHA, DROPOUT = 2, 32, 0.1
"""Of LoRA (arXiv 2106.09685): r, α and the dropout of what goes through it; the paper's."""

ADAPTED = ("query", "key", "value", "attention.output.dense")
"""Linear layers of each attention that have LoRA, by the ends of their names in an encoder of the BERT family."""


class SpanNetwork(nn.Module):
    """An encoder and a linear head of two outputs a token.

    Trained are the factors of LoRA and the head; the encoder itself is frozen. Its own dropout is as its configuration
    says.

    Args:
        encoder: gives ``last_hidden_state``.
        width: of the hidden states.
        padding: token index that is not attended to.
    """

    def __init__(self, encoder: nn.Module, width: int, padding: int) -> None:
        super().__init__()
        self.encoder, self.head, self.padding = encoder, nn.Linear(width, 2), padding

    def forward(self, tokens: Tensor) -> Tensor:
        """Token indices and segments (b, 2, T) to logits (b, T, 2) that an answer begins and ends at each token."""
        indices, segments = tokens.unbind(1)
        attended = (indices != self.padding).long()
        hidden = self.encoder(input_ids=indices, token_type_ids=segments, attention_mask=attended).last_hidden_state
        logits: Tensor = self.head(hidden)
        return logits


def span_network(folder: Path) -> SpanNetwork:
    """Load an encoder of the BERT family and add LoRA and a head, both from torch's global random numbers.

    Args:
        folder: the encoder's files for ``from_pretrained``.

    Raises:
        OSError: when the folder holds no encoder.
    """
    logging.set_verbosity_error()  # that weights of a pooler are not used is no news
    logging.disable_progress_bar()
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    adapters = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=list(ADAPTED))
    with warnings.catch_warnings():
        # peft asks transformers for something by its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        adapted = get_peft_model(encoder, adapters)
    return SpanNetwork(adapted, encoder.config.hidden_size, encoder.config.pad_token_id)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of an encoder.

    Raises:
        OSError: when the folder holds none.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer
