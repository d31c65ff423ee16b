"""Programs in every precision through a daemon."""

from __future__ import annotations

import pytest
import torch

from host_client import connect
from spu_link.operators import Conv2dRows, Dense, EmbeddingRows, LayerRows, LinearRows, Rows
from tests.spu_link.operators.algebra import random

TOLERANCES = {None: 1e-6, "float32": 1e-6, "int16": 1e-4, "float16": 1e-3, "bfloat16": 1e-2}
"""Error of the solution against that of the float64 system, relative to its largest value."""

DAMPING = 1.0
LONG = 60.0
"""Device time, in τ, after which the state is the solution: no eigenvalue of F + λI is less than 1."""


def operators() -> dict[str, LayerRows | Dense]:
    def tensor(*shape: int, seed: int) -> torch.Tensor:
        return random(*shape, seed=seed, dtype=torch.float32) / 4

    layers = LayerRows(
        [
            Rows(tensor(6, 5, seed=0)),
            LinearRows(tensor(3, 4, seed=1), tensor(2, 3, 3, seed=2), bias=True),
            LinearRows(tensor(3, 4, 5, seed=3), tensor(2, 3, 4, 2, seed=4), bias=True),
            Conv2dRows(tensor(3, 2, 4, 4, seed=5), tensor(2, 3, 2, 3, 3, seed=6), kernel=(2, 2), bias=True),
            EmbeddingRows(torch.tensor([[0, 3], [2, 2], [1, 0]]), tensor(2, 3, 2, 3, seed=7), embeddings=4),
        ]
    )
    a = tensor(4, 6, seed=8)
    return {"layers": layers, "dense": Dense(a.T @ a)}


@pytest.mark.parametrize("name", operators())
@pytest.mark.parametrize("precision", TOLERANCES)
def test_the_system_is_solved_to_the_accuracy_of_the_precision(stepped, precision, name):
    operator = operators()[name]
    n = operator.parameters
    drive = random(n, seed=9)
    dense = operator.dense().double()
    f = dense if name == "dense" else dense.T @ dense
    expected = torch.linalg.solve(f + DAMPING * torch.eye(n, dtype=torch.float64), drive)
    with connect(stepped.address) as spu, spu.session() as session:
        reading = session.solve(operator, drive, damping=DAMPING, analog_time=LONG, start="drive", precision=precision)
        assert reading.value.dtype == torch.float64
        error = float((reading.value - expected).abs().max() / expected.abs().max())
        assert error < TOLERANCES[precision]
        indices = 6 * 8 if name == "layers" else 0
        floats = operator.nbytes - indices
        narrow = precision in ("int16", "float16", "bfloat16")
        assert session.uploaded_bytes == indices + (floats // 2 if narrow else floats) + drive.nbytes


def test_both_links_give_the_same(stepped):
    operator = operators()["layers"]
    drive = random(operator.parameters)
    readings = []
    for address, options in ((stepped.address, {}), ("inproc:", {"clock": "stepped"})):
        with connect(address, **options) as spu, spu.session() as session:
            assert {"float16", "bfloat16", "int16"} <= set(spu.info.features)
            session.program(operator, drive, damping=DAMPING, start="drive", precision="int16")
            session.advance(1.5)
            readings.append(session.read().value)
    torch.testing.assert_close(*readings, rtol=1e-12, atol=1e-12)
