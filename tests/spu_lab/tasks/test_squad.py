"""Questions in SQuAD's layout: read or refused, split by passage, and scored as SQuAD scores them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spu_lab.tasks.squad import InvalidQuestions, exact_match, f1_score, read_questions, split_by_passage
from tests.cases.questions import layout, write_questions


def test_questions_are_read_with_their_passages_and_answers(tmp_path: Path) -> None:
    questions = read_questions(write_questions(tmp_path / "questions.json"))
    assert len(questions) == 24
    for question in questions:
        for answer in question.answers:
            assert question.passage[answer.answer_start :].startswith(answer.text)


def test_questions_without_an_answer_are_left_out(tmp_path: Path) -> None:
    content = layout(1)
    content["data"][0]["paragraphs"][0]["qas"][0] |= {"answers": [], "is_impossible": True}
    assert [question.id for question in read_questions(write_questions(tmp_path / "q.json", content))] == ["0-2"]


def change(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["data"][0]["paragraphs"][1]["qas"][0].update(changes)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content.pop("data"), r"data: Field required"),
        (
            lambda content: content["data"][0].update(paragraphs=3),
            r"data\[0\]\.paragraphs: Input should be a valid array, and is 3",
        ),
        (
            lambda content: content["data"][0]["paragraphs"][1].pop("context"),
            r"data\[0\]\.paragraphs\[1\]\.context: Field required",
        ),
        (change(question=""), r"data\[0\]\.paragraphs\[1\]\.qas\[0\]\.question: .*at least 1 character, and is ''"),
        (change(answers=[]), r"data\[0\]\.paragraphs\[1\]\.qas\[0\]: answers is empty; .* is_impossible"),
        (
            change(answers=[{"text": "blue", "answer_start": 3}]),
            r"data\[0\]\.paragraphs\[1\]: qas\[0\]\.answers\[0\]\.answer_start is 3, where the context has ' cat'; "
            r"it must be the place of the answer 'blue'",
        ),
        (change(id="0-0"), r"id '0-0' is that of 2 questions; each must have its own"),
    ],
)
def test_what_is_not_in_the_layout_is_refused_with_the_field(
    damage: Callable[[dict[str, Any]], object], said: str, tmp_path: Path
) -> None:
    content = layout(2)
    damage(content)
    with pytest.raises(InvalidQuestions, match=rf"q\.json: {said}"):
        read_questions(write_questions(tmp_path / "q.json", content))


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps(layout())[:100], encoding="utf-8")
    with pytest.raises(InvalidQuestions, match=r"q\.json: the file: Invalid JSON"):
        read_questions(path)


def test_parts_have_the_sizes_asked_for_and_share_no_passage(tmp_path: Path) -> None:
    questions = read_questions(write_questions(tmp_path / "q.json"))
    parts = split_by_passage(questions, (9, 4, 2), lambda question: question.id != "3-0")
    assert [len(part) for part in parts] == [9, 4, 2]
    passages = [passage for part in parts for passage in {question.passage for question in part}]
    assert len(passages) == len(set(passages))
    assert "3-0" not in {question.id for part in parts for question in part}
    assert parts == split_by_passage(questions, (9, 4, 2), lambda question: question.id != "3-0")
    with pytest.raises(
        InvalidQuestions, match=r"holds 24 questions with an answer, on 12 passages; 20 \+ 4 \+ 2 are needed"
    ):
        split_by_passage(questions, (20, 4, 2), lambda question: True)


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "f1"),
    [
        ("The Norman  conquest!", ["norman conquest"], 1.0, 1.0),
        ("in 1066", ["1066", "the year 1066 A.D."], 0.0, 2 / 3),  # 1 of 2 words right, 1 of 1 found
        ("King Harold of England", ["Harold Godwinson, King"], 0.0, 4 / 7),  # 2 common words of 4 and 3
        ("very very cold", ["very cold cold"], 0.0, 2 / 3),  # very and cold, each counted once
        ("theatre", ["the atre"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
        ("the", ["Rome"], 0.0, 0.0),
        ("Rome", ["Paris"], 0.0, 0.0),
    ],
)
def test_scores_are_those_of_squads_evaluation(answer: str, expected: list[str], exact: float, f1: float) -> None:
    assert exact_match(answer, expected) == exact
    assert f1_score(answer, expected) == pytest.approx(f1)
