"""Questions on passages in SQuAD's layout, and a small encoder that has their words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import BertConfig, BertModel, BertTokenizer

COLOURS = ("red", "blue", "green", "dark brown")
ANIMALS = ("cat", "dog", "owl")
WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", ".", *map(str, range(12))),
    *("the", "of", "house", "is", "what", "colour", "red", "blue", "green", "dark", "brown", *ANIMALS),
)
"""Of the encoder's vocabulary, at their indices."""


def layout(passages: int = 12) -> dict[str, Any]:
    """Return two questions on each of so many passages of three sentences."""
    paragraphs = []
    for number in range(passages):
        colours = [COLOURS[(number + place) % len(COLOURS)] for place in range(3)]
        context = " ".join(
            f"The {animal} of house {number} is {colour}." for animal, colour in zip(ANIMALS, colours, strict=True)
        )
        qas = [
            {
                "id": f"{number}-{place}",
                "question": f"What colour is the {ANIMALS[place]}?",
                "answers": [{"text": colours[place], "answer_start": context.index(f"is {colours[place]}.") + 3}],
            }
            for place in (0, 2)
        ]
        paragraphs.append({"context": context, "qas": qas})
    return {"version": "1.1", "data": [{"title": "houses", "paragraphs": paragraphs}]}


def write_questions(path: Path, content: object | None = None) -> Path:
    """Write a layout, by default `layout`."""
    path.write_text(json.dumps(layout() if content is None else content), encoding="utf-8")
    return path


def write_encoder(folder: Path, **options: Any) -> Path:
    """Write an encoder of one layer of width 8 with random weights, and its tokenizer."""
    tokens = {word: number for number, word in enumerate(WORDS)}
    BertTokenizer(vocab=tokens).save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(**{"vocab_size": len(tokens), "max_position_embeddings": 64, "initializer_range": 0.5, **sizes})
    config.update(options)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder
