"""Windows of tokens: a question and as much of its passage as fits, for encoders of the BERT family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spu_lab.tasks.squad import Answer, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_ANSWER = 30
"""Max tokens of an answer that is looked for, as in BERT's evaluation."""


@dataclass(frozen=True)
class Window:
    """A question and a part of its passage.

    Attributes:
        tokens: token indices and segments, shape (2, T).
        spans: first character in the passage, and the one after the last, of each token; None for tokens that are not
            of the passage.
    """

    tokens: Tensor
    spans: tuple[tuple[int, int] | None, ...]

    def places(self) -> list[int]:
        """Return the places of the passage's tokens."""
        return [place for place, span in enumerate(self.spans) if span is not None]

    def target(self, answer: Answer) -> tuple[int, int] | None:
        """Return the places of the first and the last token of an answer; None where the window cuts it."""
        first = [place for place in self.places() if self._covers(place, answer.answer_start)]
        last = [place for place in self.places() if self._covers(place, answer.answer_start + len(answer.text) - 1)]
        return (first[0], last[-1]) if first and last else None

    def _covers(self, place: int, character: int) -> bool:
        span = self.spans[place]
        return span is not None and span[0] <= character < span[1]


def windows(question: Question, tokenizer: PreTrainedTokenizerBase, length: int) -> list[Window]:
    """Return windows of `length` tokens that cover the passage; each shares half of its passage with the next.

    There are none where the question leaves less than half a window to the passage.
    """
    fixed = len(tokenizer(question.text)["input_ids"]) + 1  # the question, and the tokens that mark the parts
    if fixed > length // 2:
        return []
    encoded = tokenizer(
        question.text,
        question.passage,
        max_length=length,
        truncation="only_second",
        padding="max_length",
        stride=(length - fixed) // 2,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    rows = zip(encoded["input_ids"], encoded["token_type_ids"], encoded["offset_mapping"], strict=True)
    return [
        Window(
            torch.tensor([indices, segments]),
            tuple(
                (first, last) if part == 1 else None
                for (first, last), part in zip(offsets, encoded.sequence_ids(number), strict=True)
            ),
        )
        for number, (indices, segments, offsets) in enumerate(rows)
    ]


def learning_example(question: Question, windows: Sequence[Window]) -> tuple[Tensor, Tensor] | None:
    """Return the tokens of the window in which the first answer has the most passage around it, and its places (2,).

    None where every window cuts the answer.
    """
    targets = [(window, window.target(question.answers[0])) for window in windows]
    whole = [(window, target) for window, target in targets if target is not None]
    if not whole:
        return None
    window, target = max(whole, key=lambda pair: _room(*pair))
    return window.tokens, torch.tensor(target)


def _room(window: Window, target: tuple[int, int]) -> int:
    places = window.places()
    return min(target[0] - places[0], places[-1] - target[1])


def best_answer(question: Question, windows: Sequence[Window], outputs: Tensor) -> str:
    """Return the part of the passage with the largest sum of the two outputs, of at most `LONGEST_ANSWER` tokens.

    Args:
        question: what is asked.
        windows: all of its windows.
        outputs: logits that an answer begins and ends at each token, shape (windows, T, 2).
    """
    candidates = []
    for window, logits in zip(windows, outputs, strict=True):
        places = window.places()
        starts, ends = logits[places].unbind(-1)
        sums = starts[:, None] + ends[None, :]
        allowed = torch.ones_like(sums, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
        sums = sums.masked_fill(~allowed, -torch.inf)
        best = int(sums.argmax())
        first, last = (window.spans[places[index]] for index in divmod(best, len(places)))
        assert first is not None
        assert last is not None
        candidates.append((float(sums.flatten()[best]), question.passage[first[0] : last[1]]))
    return max(candidates, key=lambda candidate: candidate[0])[1]
