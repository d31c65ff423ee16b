"""The Monte-Carlo Fisher is the exact curvature in expectation."""

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from host_client.curvature.losses import LossCall, PerSampleLoss, loss_call
from tests.host_client.curvature.losses.problems import Problem, matrix, with_graph

DRAWS = 100_000
FALSE_ALARMS = 1e-6
"""Probability that one test fails with nothing wrong (Bonferroni over entries, normal by the many draws). Seeds are
fixed, so that it fails always or never."""


class Logistic(PerSampleLoss):
    def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none")


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _weights(*weights: float) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64)


_CLASSES = torch.tensor([[0, 2], [1, -100]])
_OUTPUTS = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.3, 0.0]], dtype=torch.float64)


def _call(function: object, z: Tensor, target: Tensor, **options: object) -> LossCall:
    return Problem(function, {"input": z, "target": target}, options).call(module=False)  # type: ignore[arg-type]


CALLS = {
    "classes": _call(F.cross_entropy, _randn(3, 3), torch.tensor([0, 2, 1])),
    "summed": _call(F.cross_entropy, _randn(3, 3), torch.tensor([0, 2, 1]), reduction="sum"),
    "weighted": _call(F.cross_entropy, _randn(3, 3), torch.tensor([0, 2, 1]), weight=_weights(0.2, 3.0, 1.0)),
    "positions": _call(F.cross_entropy, _randn(2, 3, 2), _CLASSES, label_smoothing=0.3),
    "probabilities": _call(F.cross_entropy, _randn(2, 3), _OUTPUTS.softmax(1), weight=_weights(0.2, 3.0, 1.0)),
    "unbatched": _call(F.cross_entropy, _randn(3), torch.tensor(1)),
    "nll": _call(F.nll_loss, _randn(2, 3, 2).log_softmax(1), _CLASSES),
    "kl": _call(F.kl_div, _randn(2, 3).log_softmax(1), _OUTPUTS, reduction="batchmean"),
    "mse": _call(F.mse_loss, _randn(2, 3), _OUTPUTS),
    "mse, summed": _call(F.mse_loss, _randn(2, 3), _OUTPUTS, reduction="sum"),
    "mse, both": Problem(F.mse_loss, {"input": _randn(3), "target": -_randn(3)}, {}, ("input", "target")).call(False),
    "bce with logits": _call(F.binary_cross_entropy_with_logits, _randn(2, 3), _OUTPUTS),
    "bce with logits, weighted": _call(
        F.binary_cross_entropy_with_logits,
        _randn(2, 3),
        _OUTPUTS,
        weight=_weights(0.5, 1.0, 2.0),
        pos_weight=_weights(4.0, 0.2, 1.0),
    ),
    "bce": _call(F.binary_cross_entropy, _randn(2, 3).sigmoid(), _OUTPUTS),
    "huber": _call(F.huber_loss, _randn(2, 3), _OUTPUTS),
    "gaussian": Problem(
        F.gaussian_nll_loss,
        {"input": _randn(2, 2), "target": _randn(2, 2), "var": _randn(2, 2).abs()},
        {},
        ("input", "var"),
    ).call(False),
    "per sample": loss_call(Logistic(), (with_graph(_randn(3, 3)), torch.tensor([0, 2, 1])), {}, None),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_expectation_is_the_exact_curvature(name: str) -> None:
    call = CALLS[name]
    exact = matrix(call, call.root("exact", 1, None))
    columns = call.root("mc", DRAWS, torch.Generator().manual_seed(0))
    draws = torch.cat([column.flatten(1) for column in columns], 1) * DRAWS**0.5
    products = draws[:, :, None] * draws[:, None, :]  # unbiased, one of each draw; zero across elements
    error = products.mean(0) - exact
    standard = products.std(0) / DRAWS**0.5
    threshold = stats.norm.isf(FALSE_ALARMS / 2 / error.numel())
    assert (error.abs() <= threshold * standard + 1e-12).all()
    # Only then does this mean something: every entry is known to a few percent.
    assert (threshold * standard).max() < 0.1 * products.mean(0).abs().max()


def test_draws_are_columns_and_no_two_are_alike() -> None:
    for name, call in CALLS.items():
        columns = call.root("mc", 64, None)
        for column, z in zip(columns, call.outputs, strict=True):
            assert column.shape == (64, *z.shape)
        assert len(torch.cat([column.flatten(1) for column in columns], 1).unique(dim=0)) > 1, name
        assert call.rank("mc", 64) == 64


@pytest.mark.parametrize("name", CALLS)
def test_the_generator_decides_the_draws(name: str) -> None:
    first, second = (CALLS[name].root("mc", 2, torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_labels_are_drawn_by_the_models_own_probabilities_even_of_many_classes() -> None:
    # 40,000 classes, of which the last alone has a chance.
    z = torch.full((1, 40_000), -torch.inf)
    z[0, -1] = 0.0
    call = loss_call(nn.CrossEntropyLoss(), (with_graph(z), torch.tensor([0])), {}, None)
    assert not call.root("mc", 500, torch.Generator())[0].any()


def test_draws_below_one_are_refused() -> None:
    call = loss_call(nn.MSELoss(), (with_graph(torch.ones(1)), torch.ones(1)), {}, None)
    for ask in (lambda: call.root("mc", 0, None), lambda: call.rank("mc", 0)):
        with pytest.raises(ValueError, match="0 Monte-Carlo samples; at least one"):
            ask()
