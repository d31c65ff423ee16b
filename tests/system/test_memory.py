"""The daemon keeps one copy of what was uploaded, and a few vectors."""

from spu_lab.benchmarks.memory import run

SLACK = 96 << 20
"""Stretches of rows in float64 on the way to the Gram matrix, and buffers of the algebra, in bytes."""


def test_a_million_parameters_take_their_operands_and_at_most_ten_vectors():
    # A tenth of the rows of `tngd bench memory`, so that the bound is kept without its 1 GiB for everything else.
    rows, cells = 64, 1_000_000
    result = run(rows=rows, cells=cells)
    growth = result["bytes"]["peak"] - result["bytes"]["idle"]
    allowed = result["bytes"]["operands"] + 10 * 8 * cells + SLACK
    print(f"grew by {growth / 1e6:.0f} MB, allowed are {allowed / 1e6:.0f} MB")
    assert growth < allowed
    assert result["ratios"]["peak_vs_bound"] < 1.0
