"""A program with every kind of block, to be spoilt."""

from __future__ import annotations

import torch

from spu_link.operators import Conv2dRows, Dense, EmbeddingRows, LayerRows, LinearRows, Rows
from spu_link.program import Program


def layers() -> dict[str, LinearRows | Conv2dRows | EmbeddingRows | Rows]:
    """One block of each kind, of two rows each."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "linear": LinearRows(tensor(2, 3), tensor(1, 2, 2), bias=True),
        "conv2d": Conv2dRows(tensor(2, 2, 4, 4), tensor(1, 2, 4, 2, 2), kernel=(3, 3), groups=2, bias=False),
        "rows": Rows(tensor(2, 5)),
        "sequence": LinearRows(tensor(2, 3, 2), tensor(1, 2, 3, 2), bias=False),
        "embedding": EmbeddingRows(torch.tensor([[0, 3], [1, 1]]), tensor(1, 2, 2, 2), embeddings=4),
    }


def program() -> Program:
    """Every role but the dense matrix's."""
    operator = LayerRows(list(layers().values()))
    ones = torch.ones(operator.parameters)
    return Program(operator, ones, damping=0.1, noise=0.1, start=ones.clone())


def dense(n: int = 3) -> Program:
    return Program(Dense(torch.eye(n)), torch.ones(n), damping=0.1)


TENSOR = {
    name: index
    for index, name in enumerate(
        [
            "linear.input",
            "linear.cotangent",
            "conv2d.input",
            "conv2d.cotangent",
            "rows",
            "sequence.input",
            "sequence.cotangent",
            "embedding.indices",
            "embedding.cotangent",
            "drive",
            "start",
        ]
    )
}
"""Places of the tensors of `program` in its header."""
