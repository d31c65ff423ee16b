"""Curvature operators: one class a file, named after the mathematics, the same for emulator, baselines and wire."""

from spu_link.operators.base import FactorOperator, Operator
from spu_link.operators.conv2d import Conv2dRows
from spu_link.operators.dense import Dense
from spu_link.operators.embedding import EmbeddingRows
from spu_link.operators.kept import Kept
from spu_link.operators.layers import LayerRows
from spu_link.operators.linear import LinearRows
from spu_link.operators.rows import Rows
from spu_link.operators.stack import stack

__all__ = [
    "Conv2dRows",
    "Dense",
    "EmbeddingRows",
    "FactorOperator",
    "Kept",
    "LayerRows",
    "LinearRows",
    "Operator",
    "Rows",
    "stack",
]
