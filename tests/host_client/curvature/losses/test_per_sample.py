"""Losses of one's own."""

import doctest
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host_client.curvature.errors import CurvatureApproximation, UnsupportedCriterion
from host_client.curvature.losses import LossCall, PerSampleLoss, check_criterion, loss_call, per_sample
from tests.host_client.curvature.losses.problems import elements, matrix, with_graph


class Focal(PerSampleLoss):
    def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(output, target, reduction="none")
        return (1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy


class Quartic(PerSampleLoss):
    """Convex, and not a sum over entries."""

    def per_sample(self, z: Tensor, targets: Any) -> Tensor:
        return ((z - targets["t"]).flatten(1).square().sum(1) + 1) ** 2


def _call(criterion: nn.Module, z: Tensor, target: Any) -> LossCall:
    return loss_call(criterion, (with_graph(z), target), {}, None)


def _blocks(criterion: nn.Module, z: Tensor, target: Any) -> Tensor:
    n = z.numel()
    hessian = torch.autograd.functional.hessian(lambda z: criterion(z, target), z).reshape(n, n)  # type: ignore[attr-defined]
    blocks = hessian.reshape(len(z), n // len(z), len(z), n // len(z)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    assert torch.allclose(torch.block_diag(*blocks), hessian)
    return blocks


def test_the_example_of_the_documentation() -> None:
    results = doctest.testmod(per_sample)
    assert results.attempted >= 5
    assert results.failed == 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk", [1 << 22, 1])
def test_a_convex_loss_has_its_hessian(reduction: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_sample, "CHUNK", chunk)
    z, t = torch.randn(2, 3, 2, 2, dtype=torch.float64).unbind()
    criterion = Quartic(reduction)
    call = _call(criterion, z, {"t": t})
    assert call.rank("exact", 1) == 4
    assert call.element_dims == ((1, 2),)
    assert call.element_shape == (3,)
    assert call.counts() is None
    expected = torch.block_diag(*_blocks(criterion, z, {"t": t}))
    torch.testing.assert_close(matrix(call, call.root("exact", 1, None)), expected, rtol=1e-9, atol=1e-12)


def test_a_loss_that_is_not_convex_has_the_positive_part_with_one_warning() -> None:
    z, t = 2 * torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    criterion = Focal()
    call = _call(criterion, z, t)
    with pytest.warns(CurvatureApproximation, match="Focal is not convex: its Hessian is replaced by its positive"):
        columns = elements(call, call.root("exact", 1, None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call.root("exact", 1, None)
    eigenvalues, vectors = torch.linalg.eigh(_blocks(criterion, z, t))
    assert (eigenvalues < 0).any()
    positive = (vectors * eigenvalues.clamp_min(0)[:, None]) @ vectors.mT
    torch.testing.assert_close(torch.einsum("kei,kej->eij", columns, columns), positive, rtol=1e-9, atol=1e-12)


def test_the_empirical_fisher_of_a_mean_over_samples() -> None:
    z, t = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    (column,) = loss_call(Focal(), (), {"target": t, "output": z * 1}, None).root("empirical", 1, None)
    (gradient,) = torch.autograd.grad(Focal()(z, t), z)
    torch.testing.assert_close(column, 2 * gradient[None])


def test_a_loss_in_float16_is_computed_in_float32() -> None:
    z, t = torch.randn(4, 3).half(), {"t": torch.randn(4, 3).half()}
    for kind in ("exact", "mc", "empirical"):
        half, single = (
            _call(Quartic(), x, t).root(kind, 3, torch.Generator().manual_seed(0))[0]  # type: ignore[arg-type]
            for x in (z, z.float())
        )
        assert torch.equal(half, single.half())


def test_a_diverged_sample_has_no_finite_root_and_raises_nothing() -> None:
    z = torch.randn(3, 2)
    z[1] = torch.nan
    call = _call(Quartic(), z, {"t": torch.zeros(3, 2)})
    (columns,) = call.root("exact", 1, None)
    assert columns[:, 1].isnan().all()
    assert columns[:, ::2].isfinite().all()


def test_another_shape_is_refused() -> None:
    class Summed(PerSampleLoss):
        def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
            return (output - target).square()

    with pytest.raises(UnsupportedCriterion, match=r"per_sample returned shape \(4, 3\).*one loss a sample.*\(4,\)"):
        Summed()(torch.randn(4, 3), torch.randn(4, 3))


def test_a_loss_that_couples_samples_is_refused() -> None:
    class Contrastive(PerSampleLoss):
        def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output @ output.T, target, reduction="none")

    class Centred(PerSampleLoss):
        def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
            return (output - output.mean(0)).square().sum(1)

    class Noisy(PerSampleLoss):
        def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
            return F.dropout(output - target).square().sum(1)

    with pytest.raises(UnsupportedCriterion, match=r"per_sample cannot be transformed|per_sample returns other values"):
        _call(Contrastive(), torch.randn(4, 3), torch.arange(4)).root("exact", 1, None)
    for criterion in (Centred(), Noisy()):
        with pytest.raises(UnsupportedCriterion, match=r"per_sample returns other values for a batch.*couples samples"):
            _call(criterion, torch.randn(4, 3), torch.randn(4, 3)).root("mc", 1, None)


def test_a_loss_that_torch_func_cannot_transform_is_refused() -> None:
    class Python(PerSampleLoss):
        def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
            return output.sum(1) * output.max().item()

    with pytest.raises(UnsupportedCriterion, match=r"per_sample cannot be transformed by torch.func.*without .item"):
        _call(Python(), torch.randn(4, 3), torch.randn(4)).root("exact", 1, None)


def test_other_reductions_and_forwards_are_refused() -> None:
    with pytest.raises(UnsupportedCriterion, match="reduction is 'none'"):
        Focal(reduction="none")

    class Own(Focal):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return 2 * super().forward(output, target)

    check_criterion(Focal(), "exact")
    with pytest.raises(UnsupportedCriterion, match="is Own, whose curvature is not known"):
        check_criterion(Own(), "exact")
