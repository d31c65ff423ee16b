"""Windows, targets and answers of the task, and the curvature of an encoder with LoRA and dropout."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from host_client.curvature import Capture
from spu_lab.tasks.question_answering import question_answering
from spu_lab.tasks.span_network import load_tokenizer
from spu_lab.tasks.squad import Question, read_questions
from spu_lab.tasks.squad_windows import best_answer, learning_example, windows
from spu_lab.tasks.task import Task
from tests.cases.questions import WORDS, write_encoder, write_questions

LENGTH = 24


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "questions.json")


@pytest.fixture(scope="module")
def questions(data: Path) -> list[Question]:
    return read_questions(data)


@pytest.fixture(scope="module")
def task(data: Path, encoder: Path) -> Task:
    return question_answering(data, encoder, (12, 4, 6), LENGTH)


def test_windows_cover_the_passage_and_targets_point_at_the_answer(encoder: Path, questions: list[Question]) -> None:
    tokenizer, pointed = load_tokenizer(encoder), 0
    for question in questions:
        cut = windows(question, tokenizer, LENGTH)
        assert len(cut) > 1
        seen = {character for window in cut for span in window.spans if span for character in range(*span)}
        assert {place for place, character in enumerate(question.passage) if character != " "} <= seen
        for window in cut:
            assert window.tokens.shape == (2, LENGTH)
            if (target := window.target(question.answers[0])) is not None:
                first, last = (window.spans[place] for place in target)
                assert question.passage[first[0] : last[1]] == question.answers[0].text
                pointed += 1
    assert pointed >= len(questions)


def test_the_example_to_learn_from_is_the_window_with_most_passage_around_the_answer(
    encoder: Path, questions: list[Question]
) -> None:
    question = questions[1]
    cut = windows(question, load_tokenizer(encoder), LENGTH)
    tokens, target = learning_example(question, cut)
    rooms = {}
    for window in cut:
        if (found := window.target(question.answers[0])) is not None:
            places = window.places()
            rooms[min(found[0] - places[0], places[-1] - found[1])] = (window.tokens, found)
    assert torch.equal(tokens, rooms[max(rooms)][0])
    assert tuple(target.tolist()) == rooms[max(rooms)][1]


def test_the_best_answer_begins_before_it_ends_and_is_part_of_the_passage(
    encoder: Path, questions: list[Question]
) -> None:
    question = questions[0]
    cut = windows(question, load_tokenizer(encoder), LENGTH)
    outputs = torch.zeros(len(cut), LENGTH, 2)
    places = cut[1].places()
    outputs[1, places[2], 0], outputs[1, places[3], 1] = 2.0, 2.0
    outputs[1, 1, 0] = 9.0  # in the question
    outputs[1, places[1], 1] = 3.0  # an end before the start
    first, last = cut[1].spans[places[2]], cut[1].spans[places[3]]
    assert best_answer(question, cut, outputs) == question.passage[first[0] : last[1]]


def test_what_does_not_fit_into_a_window_is_left_out_and_logged(
    data: Path, encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="holds 24 questions"):
        question_answering(data, encoder, (12, 4, 6), 12)
    assert "question 0-0 is left out" in caplog.text


def test_adapters_and_head_are_trained_and_the_encoder_is_not(task: Task) -> None:
    model = task.build(0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len([name for name in trained if "lora_A" in name]) == 4  # query, key, value, output of one layer
    assert all("lora_" in name or name.startswith("head.") for name in trained)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4 * 2 * (8 + 8) + 2 * 8 + 2


def test_scores_are_full_for_a_network_that_knows_and_low_for_one_that_does_not(task: Task) -> None:
    class Knows(nn.Module):
        """Points at the colour of the animal asked for, five tokens after it: "the cat of house 1 is red"."""

        def forward(self, tokens: Tensor) -> Tensor:
            indices, segments = tokens.unbind(1)
            logits = torch.zeros(*indices.shape, 2)
            for row, (window, parts) in enumerate(zip(indices.tolist(), segments.tolist(), strict=True)):
                asked = window[5]
                for place in range(len(window) - 6):
                    if parts[place] == 1 and window[place] == asked and window[place + 5] != 0:
                        end = place + 5 + (window[place + 5] == dark)
                        logits[row, place + 5, 0], logits[row, end, 1] = 5.0, 5.0
            return logits

    dark = WORDS.index("dark")
    assert task.test_scores(Knows()) == {"exact_match": 1.0, "f1": 1.0}
    scores = task.test_scores(task.build(0))
    assert scores["exact_match"] <= scores["f1"] < 1.0


def test_the_curvature_is_exact_with_dropout_and_padding(task: Task) -> None:
    """Compared with Σ Jᵀ H J from `jacrev` in float64, under the same masks."""
    tokens, targets = next(iter(task.batches(3, seed=0)))
    model, criterion = task.build(0).double().train(), nn.CrossEntropyLoss()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def outputs(values: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(1)
        return torch.func.functional_call(model, values, (tokens,))

    flat = torch.cat([parameter.detach().flatten() for parameter in trained.values()])
    sizes = [parameter.numel() for parameter in trained.values()]

    def of_flat(vector: Tensor) -> Tensor:
        parts = vector.split(sizes)
        return outputs({n: part.view_as(p) for (n, p), part in zip(trained.items(), parts, strict=True)})

    jacobian = torch.autograd.functional.jacobian(of_flat, flat)  # (b, T, 2, N)
    p = of_flat(flat).detach().softmax(1)
    expected = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for sample, which in itertools.product(range(3), range(2)):
        J, q = jacobian[sample, :, which], p[sample, :, which]
        expected += J.T @ (torch.diag(q) - torch.outer(q, q)) @ J / 6

    capture = Capture(model, criterion)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no fallback
        criterion(outputs(dict(trained)), targets).backward()
    factor = capture.operator_of_gradients()
    capture.close()
    assert factor.shape[0] == 3 * 2 * (LENGTH - 1)
    assert torch.allclose(factor.curvature_matrix(), expected, atol=1e-12, rtol=1e-9)
    assert not torch.equal(of_flat(flat), model.eval()(tokens))  # the masks drop something
