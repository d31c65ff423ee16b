"""The pure plans, against dense float64 algebra."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from host_client.embeddings import Block, Embedding, Kronecker, SampleSpace, Stage, embedding_of, fitting, solve_exactly
from host_client.embeddings.fitting import check_fits
from host_client.embeddings.kronecker import balance
from spu_link.errors import CapacityExceeded, InvalidProgram
from spu_link.operators import Dense, Operator, Rows
from spu_link.program import Program
from tests.host_client.embeddings.operators import factors, relaxed, rows, vector
from tests.profiles import examples

SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=4)
DAMPING = st.floats(1e-3, 10.0)


def dense(operator: Operator) -> Tensor:
    a = operator.dense()
    return a if isinstance(operator, Dense) else a.T @ a


def solved(matrix: Tensor, damping: float, drive: Tensor) -> Tensor:
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=torch.float64), drive)


def close(found: Tensor, expected: Tensor, damping: float) -> None:
    """Equal up to what the conditioning of the system allows."""
    assert (found - expected).norm() <= 1e-11 / damping * expected.norm() + 1e-13


@settings(max_examples=examples(60))
@given(m=st.integers(1, 9), sizes=SIZES, damping=DAMPING, seed=st.integers(0, 999))
def test_sample_space_gives_the_solution_itself(m: int, sizes: list[int], damping: float, seed: int) -> None:
    operator = rows(m, *sizes, seed=seed)
    drive = vector(operator.parameters, seed)
    assert SampleSpace().cells(operator) == m
    close(solve_exactly(SampleSpace(), operator, drive, damping), solved(dense(operator), damping, drive), damping)


@settings(max_examples=examples(60))
@given(m=st.integers(1, 9), sizes=SIZES, cuts=st.sets(st.integers(1, 3)), damping=DAMPING, seed=st.integers(0, 999))
def test_blocks_give_the_solution_under_the_diagonal(
    m: int, sizes: list[int], cuts: set[int], damping: float, seed: int
) -> None:
    operator = rows(m, *sizes, seed=seed)
    drive = vector(operator.parameters, seed)
    ends = [*(cut for cut in sorted(cuts) if cut < len(sizes)), len(sizes)]
    groups = [sum(sizes[i:j]) for i, j in zip([0, *ends], ends, strict=False)]
    curvature = dense(operator)
    for given_sizes, expected in ((None, sizes), (groups, groups)):
        kept = torch.block_diag(*(torch.ones(n, n, dtype=torch.float64) for n in expected))
        embedding = Block(given_sizes)
        assert embedding.cells(operator) == max(expected)
        close(solve_exactly(embedding, operator, drive, damping), solved(curvature * kept, damping, drive), damping)


def test_rows_and_matrices_are_cut_anywhere() -> None:
    a = rows(4, 9).dense()
    drive, sizes = vector(9), (2, 4, 3)
    kept = torch.block_diag(*(torch.ones(n, n, dtype=torch.float64) for n in sizes))
    for operator in (Rows(a), Dense(a.T @ a)):
        found = solve_exactly(Block(sizes), operator, drive, 0.3)
        close(found, solved(a.T @ a * kept, 0.3, drive), 0.3)
        close(solve_exactly(Block(), operator, drive, 0.3), solved(a.T @ a, 0.3, drive), 0.3)


@settings(max_examples=examples(60))
@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    damping=DAMPING,
    seed=st.integers(0, 999),
)
def test_kronecker_gives_the_solution_with_factored_damping(
    shapes: list[tuple[int, int]], damping: float, seed: int
) -> None:
    operator = factors(*shapes, seed=seed)
    drive = vector(operator.parameters, seed)
    expected = []
    for layer, v in zip(operator.blocks, operator.matrices(drive), strict=True):
        share = balance(layer) * math.sqrt(damping)
        other = math.sqrt(damping) / balance(layer)
        a = layer.inputs + share * torch.eye(len(layer.inputs), dtype=torch.float64)
        b = layer.cotangents + other * torch.eye(len(layer.cotangents), dtype=torch.float64)
        expected.append(torch.linalg.solve(b, v) @ torch.linalg.inv(a))
    assert Kronecker().cells(operator) == max(max(shape) for shape in shapes)
    close(solve_exactly(Kronecker(), operator, drive, damping), operator.vector(expected, drive), damping)


def test_no_layer_takes_more_programs_than_it_has_unknowns() -> None:
    operator = factors((2, 6), (6, 2), (3, 3))
    first = Kronecker().embed(operator).plan(Program(operator, vector(operator.parameters), damping=0.1, start="drive"))
    assert len(first.problems) == 2 + 2 + 3
    second = first.then([problem.drive for problem in first.problems])
    assert isinstance(second, Stage)
    assert len(second.problems) == 2 + 2 + 3
    assert {len(problem.drive) for problem in first.problems} == {6, 2, 3}


@settings(max_examples=examples(40))
@given(
    m=st.integers(1, 6),
    n=st.integers(1, 9),
    damping=st.floats(0.01, 2.0),
    time=st.floats(0.0, 20.0),
    started=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_cells_in_sample_space_are_the_image_of_those_in_parameter_space_at_all_times(
    m: int, n: int, damping: float, time: float, started: bool, seed: int
) -> None:
    operator = rows(m, n, seed=seed)
    a, drive = operator.dense(), vector(n, seed)
    x0 = vector(n, seed + 1) if started else drive
    direct = relaxed(a.T @ a + damping * torch.eye(n, dtype=torch.float64), drive, x0, time)
    program = Program(operator, drive, damping=damping, start=x0 if started else "drive")
    stage = SampleSpace().embed(operator).plan(program)
    (problem,) = stage.problems
    start = problem.drive if isinstance(problem.start, str) else problem.start
    w = relaxed(dense(problem.operator) + damping * torch.eye(m, dtype=torch.float64), problem.drive, start, time)
    torch.testing.assert_close(w, a @ direct, rtol=1e-9, atol=1e-9)
    # What is off at a finite time lies in the range of Aᵀ, and is Aᵀ(w∞ − w) / λ.
    found = stage.then([w])
    assert isinstance(found, Tensor)
    exact = solved(a.T @ a, damping, drive)
    torch.testing.assert_close(found - exact, a.T @ (a @ exact - w) / damping, rtol=1e-7, atol=1e-8 / damping)


@settings(max_examples=examples(40))
@given(damping=st.floats(1e-3, 1.0), time=st.floats(0.05, 50.0), seed=st.integers(0, 99))
def test_short_runs_one_after_the_other_come_closer_to_the_solution(damping: float, time: float, seed: int) -> None:
    """Each goes on from the estimate of the state that the one before left behind, and none makes it worse."""
    operator = rows(3, 8, seed=seed)
    a, drive = operator.dense(), vector(8, seed)
    exact = solved(a.T @ a, damping, drive)
    gram = a @ a.T + damping * torch.eye(3, dtype=torch.float64)
    state, off = drive, math.inf
    for _ in range(12):
        stage = SampleSpace().embed(operator).plan(Program(operator, drive, damping=damping, start=state))
        (problem,) = stage.problems
        assert isinstance(problem.start, Tensor)
        found = stage.then([relaxed(gram, problem.drive, problem.start, time)])
        assert isinstance(found, Tensor)
        state = SampleSpace().state_after(state, found, damping * time)
        now = float((a @ (state - exact)).norm())
        assert now <= off * (1 + 1e-9) + 1e-9
        off = now


@pytest.mark.parametrize(
    ("embedding", "operator"),
    [
        (SampleSpace(), Dense(torch.eye(3))),
        (SampleSpace(), factors((2, 2))),
        (Block(), factors((2, 2))),
        (Kronecker(), rows(2, 3)),
    ],
)
def test_an_operator_without_a_map_is_refused(embedding: Embedding, operator: Operator) -> None:
    for ask in (embedding.cells, embedding.embed):
        with pytest.raises(
            InvalidProgram, match=f"embedding '{embedding.name}' has no map for {type(operator).__name__}"
        ):
            ask(operator)


@pytest.mark.parametrize(
    ("embedding", "operator"), [(SampleSpace(), rows(2, 3)), (Block(), rows(2, 3)), (Kronecker(), factors((2, 2)))]
)
def test_a_system_without_damping_is_refused(embedding: Embedding, operator: Operator) -> None:
    with pytest.raises(InvalidProgram, match="damping is 0"):
        embedding.embed(operator).plan(Program(operator, vector(operator.parameters), start="drive"))


@pytest.mark.parametrize("sizes", [(), (0, 5), (2.0, 3), (2, 2), (1, 4)])
def test_blocks_that_do_not_fit_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(InvalidProgram, match="sizes is"):
        Block(sizes).cells(rows(2, 2, 3))


def test_the_error_for_an_operator_that_is_too_large_says_what_would_fit() -> None:
    operator = rows(4, 30, 20)
    check_fits(SampleSpace(), operator, 4)
    message = (
        "embedding 'block' needs 30 cells .* the device has 29; what would fit: embedding=\"sample\" \\(4 cells\\)"
    )
    with pytest.raises(CapacityExceeded, match=message):
        check_fits(Block(), operator, 29)
    with pytest.raises(CapacityExceeded, match="no embedding of this operator fits it"):
        check_fits(SampleSpace(), operator, 3)
    assert [(one.name, n) for one, n in fitting(operator, 30)] == [("sample", 4), ("block", 30)]


def test_embeddings_are_known_by_name() -> None:
    assert embedding_of(None) is embedding_of("direct") is None
    for name, kind in (("sample", SampleSpace), ("block", Block), ("kronecker", Kronecker)):
        assert isinstance(embedding_of(name), kind)
    mine = Block((2, 3))
    assert embedding_of(mine) is mine
    assert repr(mine) == "Block(sizes=(2, 3))"
    with pytest.raises(
        InvalidProgram, match="embedding is 'samples'; expected 'direct', 'sample', 'block', 'kronecker'"
    ):
        embedding_of("samples")
