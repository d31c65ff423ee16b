import torch
from hypothesis import given
from hypothesis import strategies as st

from host_client.curvature.losses.softmax import softmax_root


def _hessian(logits: torch.Tensor) -> torch.Tensor:
    p = logits.double().softmax(1)
    outer = p[:, :, None] * p[:, None, :]
    off_diagonal = outer - torch.diag_embed(p**2)
    # p (1 - p) as the sum over the other classes: nothing is lost when p is nearly 1.
    return torch.diag_embed(off_diagonal.sum(2)) - off_diagonal


def _product(logits: torch.Tensor) -> torch.Tensor:
    columns = softmax_root(logits).double()
    return torch.einsum("cbi,cbj->bij", columns, columns)


@given(st.integers(1, 5), st.integers(2, 12), st.floats(0, 100), st.integers(0, 2**31))
def test_columns_are_a_square_root_of_the_hessian(b: int, d: int, scale: float, seed: int) -> None:
    logits = scale * torch.randn(b, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert softmax_root(logits).shape == (d - 1, b, d)
    torch.testing.assert_close(_product(logits), _hessian(logits), rtol=1e-11, atol=1e-15)


@given(st.floats(0, 30), st.integers(0, 4))
def test_float32_is_accurate_to_rounding_however_sure_the_model_is(margin: float, likeliest: int) -> None:
    logits = torch.tensor([[0.3, -0.2, 0.1, 0.7, 0.0]])
    logits[0, likeliest] += margin
    hessian = _hessian(logits)
    # Relative to the diagonal: what is left of p (1 - p) when p is nearly 1 is kept, entry by entry.
    scale = hessian.diagonal(dim1=1, dim2=2).sqrt()
    error = (_product(logits) - hessian) / (scale[:, :, None] * scale[:, None, :])
    assert error.abs().max() < 2e-5


def test_classes_ruled_out_are_harmless() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, -torch.inf, 2.0]])
    torch.testing.assert_close(_product(logits), _hessian(logits), rtol=1e-6, atol=1e-7)
