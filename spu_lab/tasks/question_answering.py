"""Extractive question answering: where in a passage is the answer to a question?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spu_lab.tasks.span_network import load_tokenizer, span_network
from spu_lab.tasks.squad import Question, exact_match, f1_score, read_questions, split_by_passage
from spu_lab.tasks.squad_windows import best_answer, learning_example, windows
from spu_lab.tasks.task import Examples, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CHUNK = 64
"""Windows that go through the network at once where it is scored."""


def question_answering(data: Path, encoder: Path, sizes: Sequence[int], length: int) -> Task:
    """Questions of a file, each part on passages of its own, and LoRA on a pretrained encoder.

    The loss is the mean of the two cross-entropies of the first and the last token of the first answer. Training,
    validation and loss of the test see the window with that answer; `Task.score` searches all windows of a passage.
    Questions that fill more than half a window, and those whose first answer every window cuts, are left out, and the
    log says so.

    Args:
        data: a file in SQuAD's layout.
        encoder: folder with the files of an encoder of the BERT family and of its tokenizer.
        sizes: numbers of questions for training, validation and test.
        length: tokens of a window, T.

    Raises:
        InvalidQuestions: when the file is not as it must be, or holds too few questions.
        OSError: when a file cannot be read.
    """
    tokenizer = load_tokenizer(encoder)
    examples: dict[str, tuple[Tensor, Tensor]] = {}

    def fits(question: Question) -> bool:
        example = learning_example(question, windows(question, tokenizer, length))
        if example is None:
            log.warning("question %s is left out: it or its answer is too long for %d tokens", question.id, length)
            return False
        examples[question.id] = example
        return True

    parts = split_by_passage(read_questions(data), sizes, fits)
    train, validation, test = (_stack([examples[question.id] for question in part]) for part in parts)
    return Task(
        name="question-answering",
        outputs=2 * length,
        network=partial(span_network, encoder),
        criterion=nn.CrossEntropyLoss(),
        prepare=lambda tokens: tokens,
        train=train,
        validation=validation,
        test=test,
        score=partial(_scores, parts[-1], tokenizer, length),
    )


def _stack(pairs: Sequence[tuple[Tensor, Tensor]]) -> Examples:
    tokens, targets = zip(*pairs, strict=True)
    return Examples(torch.stack(tokens), torch.stack(targets))


@torch.no_grad()
def _scores(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, length: int, model: nn.Module
) -> Mapping[str, float]:
    """Return the mean exact match and F1 of the answers that a network in evaluation mode gives."""
    cut = [windows(question, tokenizer, length) for question in questions]
    tokens = torch.stack([window.tokens for each in cut for window in each])
    outputs = torch.cat([model(part) for part in tokens.split(CHUNK)])
    answers = [
        best_answer(question, each, logits)
        for question, each, logits in zip(questions, cut, outputs.split([len(each) for each in cut]), strict=True)
    ]
    expected = [[answer.text for answer in question.answers] for question in questions]
    return {
        name: fmean(score(answer, texts) for answer, texts in zip(answers, expected, strict=True))
        for name, score in (("exact_match", exact_match), ("f1", f1_score))
    }
