"""Questions on passages of text in the JSON layout of SQuAD (Rajpurkar et al. 2016, 2018), and their scores.

A file holds ``{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text",
"answer_start"}]}]}]}]}``, in characters from 0. Questions of SQuAD 2.0 with ``"is_impossible": true`` are left out.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, Field, ValidationError, model_validator


class InvalidQuestions(ValueError):
    """A file with questions is not in SQuAD's layout, or does not hold what the experiment needs."""

    remedy: ClassVar[str] = (
        "give a JSON file in SQuAD's layout, such as dev-v1.1.json or train-v1.1.json of the SQuAD web site"
    )


class Answer(BaseModel):
    """An answer: a part of the passage, from the character `answer_start` on."""

    text: str = Field(min_length=1)
    answer_start: int = Field(ge=0)


class _Question(BaseModel):
    id: str
    question: str = Field(min_length=1)
    answers: list[Answer]
    is_impossible: bool = False

    @model_validator(mode="after")
    def _has_answers(self) -> Self:
        if not self.answers and not self.is_impossible:
            raise ValueError("answers is empty; a question without an answer must have is_impossible: true")
        return self


class _Paragraph(BaseModel):
    context: str = Field(min_length=1)
    qas: list[_Question]

    @model_validator(mode="after")
    def _answers_are_in_the_context(self) -> Self:
        for number, question in enumerate(self.qas):
            for place, answer in enumerate(question.answers):
                there = self.context[answer.answer_start : answer.answer_start + len(answer.text)]
                if there != answer.text:
                    raise ValueError(
                        f"qas[{number}].answers[{place}].answer_start is {answer.answer_start}, where the context has "
                        f"{there!r}; it must be the place of the answer {answer.text!r}"
                    )
        return self


class _Article(BaseModel):
    paragraphs: list[_Paragraph]


class _Layout(BaseModel):
    data: list[_Article]


@dataclass(frozen=True)
class Question:
    """A question that a part of a passage answers.

    Attributes:
        id: name in the file.
        text: the question.
        passage: text that holds the answer.
        answers: what people have answered, at least one; the first is what is learnt.
    """

    id: str
    text: str
    passage: str
    answers: tuple[Answer, ...]


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a file in SQuAD's layout that have an answer.

    Raises:
        InvalidQuestions: naming the first field that is not what it must be.
        OSError: when the file cannot be read.
    """
    try:
        layout = _Layout.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InvalidQuestions(f"{path}: {_first_problem(error)}") from error
    questions = [
        Question(question.id, question.question, paragraph.context, tuple(question.answers))
        for article in layout.data
        for paragraph in article.paragraphs
        for question in paragraph.qas
        if not question.is_impossible
    ]
    name, times = max(Counter(question.id for question in questions).items(), key=itemgetter(1), default=("", 0))
    if times > 1:
        raise InvalidQuestions(f"{path}: id {name!r} is that of {times} questions; each must have its own")
    return questions


def _first_problem(error: ValidationError) -> str:
    """Return field, value and what would be right."""
    problem = error.errors(include_url=False)[0]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    said = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
    if problem["loc"] and problem["type"] not in ("missing", "value_error"):
        said = f"{said}, and is {problem['input']!r:.60}"
    return f"{field or 'the file'}: {said}"


def split_by_passage(
    questions: Sequence[Question], sizes: Sequence[int], usable: Callable[[Question], bool], seed: int = 0
) -> list[list[Question]]:
    """Return parts of these sizes, each with passages of its own.

    A passage has several questions, and one that was seen in training is no longer new. Whole articles would be apart
    farther still, but of a file with few of them the test would hold one, and measure how hard that one is.

    Args:
        questions: all.
        sizes: number of questions of each part.
        usable: returns whether a question counts; the others are left out.
        seed: of the order in which passages are taken.

    Raises:
        InvalidQuestions: when there are too few.
    """
    passages: dict[str, list[Question]] = {}
    for question in questions:
        passages.setdefault(question.passage, []).append(question)
    order = list(passages.values())
    random.Random(seed).shuffle(order)
    left = iter(order)
    parts: list[list[Question]] = []
    for size in sizes:
        part: list[Question] = []
        while len(part) < size:
            more = next(left, None)
            if more is None:
                raise InvalidQuestions(
                    f"the file holds {len(questions)} questions with an answer, on {len(passages)} passages; "
                    f"{' + '.join(map(str, sizes))} are needed that fit into a window, on passages of their own"
                )
            part += filter(usable, more)
        parts.append(part[:size])
    return parts


def exact_match(answer: str, expected: Sequence[str]) -> float:
    """Return 1 where an answer is one of those expected but for case, punctuation, articles and spaces, else 0."""
    return float(max(normalise(answer) == normalise(text) for text in expected))


def f1_score(answer: str, expected: Sequence[str]) -> float:
    """Return the largest F1 of the words of an answer with those of one that is expected.

    As SQuAD's ``evaluate-v2.0.py`` has it: words are compared as `normalise` leaves them, and where either has none, F1
    is 1 if both have none, else 0.
    """
    return max(_f1(normalise(answer).split(), normalise(text).split()) for text in expected)


def normalise(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation, English articles and spaces that are not needed."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _f1(words: Sequence[str], expected: Sequence[str]) -> float:
    if not words or not expected:
        return float(words == expected)
    common = (Counter(words) & Counter(expected)).total()
    return 2.0 * common / (len(words) + len(expected))
