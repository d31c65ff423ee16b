"""F is exact where samples mix, what has no curvature is refused, and an interrupted pass leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from host_client.curvature import (
    Capture,
    Check,
    CurvatureApproximation,
    CurvatureFallback,
    Kind,
    UnsupportedCriterion,
)
from spu_link.operators import LinearRows, Rows
from tests.cases import Problem, named
from tests.host_client.curvature.oracle import assert_same_curvature, curvature
from tests.networks import ConstantStatistics, Function, parameter


def _problem(name: str = "mlp") -> Problem:
    return named(name).problem()


def _assert_exact(capture: Capture, problem: Problem) -> None:
    outputs = problem.outputs()
    problem.criterion(outputs, problem.targets)
    a = capture.operator.dense()
    sizes = [p.numel() for p in problem.trained]
    assert_same_curvature(a.T @ a, curvature(problem, outputs), sizes, 1e-10)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("tracked", [True, False], ids=["training", "evaluation without statistics"])
@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d, (3,)), (nn.BatchNorm2d, (3, 2, 2)), (nn.BatchNorm3d, (3, 1, 2, 2))]
)
def test_batch_norm_with_statistics_of_the_batch_has_the_curvature_of_constant_ones(
    norm: type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d],
    shape: tuple[int, ...],
    tracked: bool,
    affine: bool,
    frozen: bool,
) -> None:
    """It leaves something out, which is announced once; with statistics of its own the layer is exact."""
    layer = norm(3, affine=affine, track_running_stats=tracked).requires_grad_(not frozen).train(tracked)
    features, inner = torch.Size(shape).numel(), nn.Sequential(layer)
    body = nn.Sequential(nn.Flatten(), nn.Linear(features, features), nn.Unflatten(1, shape))
    model = nn.Sequential(body, inner, nn.Flatten(), nn.Linear(features, 3)).double()
    criterion = nn.CrossEntropyLoss()
    problem = Problem(model, criterion, torch.randn(4, *shape, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    capture = Capture(model, criterion)
    with pytest.warns(CurvatureApproximation, match=r"statistics on the batch in NativeBatchNorm.*eval mode"):
        problem.loss()
    a = capture.operator.dense()
    inner[0] = ConstantStatistics(layer)  # type: ignore[assignment]
    sizes = [p.numel() for p in problem.trained]
    assert_same_curvature(a.T @ a, curvature(problem, problem.outputs()), sizes, 1e-10)
    inner[0] = layer
    problem.loss()  # without another warning, which would be an error
    if tracked:
        layer.eval()
        _assert_exact(capture, problem)


MIXING: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "mean over the samples": lambda m, x: m.head(m.body(x) - m.body(x).mean(0)),  # type: ignore[operator]
    "mean over the samples and more": lambda m, x: m.head(m.body(x) - m.body(x).mean()),  # type: ignore[operator]
    "softmax over the samples": lambda m, x: m.head(m.body(x).softmax(0)),  # type: ignore[operator]
    "attention among samples": lambda m, x: m.head((m.body(x) @ m.body(x).T).softmax(1) @ m.body(x)),  # type: ignore[operator]
    "samples in another order": lambda m, x: m.head(m.body(x).flip(0)),  # type: ignore[operator]
    "each sample with the next": lambda m, x: m.head(m.body(x) * m.body(x).roll(1, 0)),  # type: ignore[operator]
    "sums up to each sample": lambda m, x: m.head(m.body(x).cumsum(0)),  # type: ignore[operator]
    "norm of all samples": lambda m, x: m.head(F.normalize(m.body(x), dim=0)),  # type: ignore[operator]
}


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("check", ["always", "never"])
def test_samples_that_mix_between_layers_cost_more_and_have_the_exact_curvature(mixing: str, check: Check) -> None:
    model = Function(MIXING[mixing], body=nn.Linear(5, 5), head=nn.Linear(5, 3))
    _assert_exact_at_a_higher_cost(model, check)


AFTER: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "mean over the samples": lambda m, x: m.body(x) - m.body(x).mean(0),  # type: ignore[operator]
    "three samples, and the first one again": lambda m, x: m.body(x)[[0, 1, 2, 0]],  # type: ignore[operator]
    "three samples, joined with the first one": lambda m, x: (lambda z: torch.cat([z[:3], z[:1]]))(m.body(x)),  # type: ignore[operator]
}


@pytest.mark.parametrize("mixing", AFTER)
@pytest.mark.parametrize("check", ["always", "never"])
def test_samples_that_mix_after_the_last_layer_cost_more_and_have_the_exact_curvature(
    mixing: str, check: Check
) -> None:
    _assert_exact_at_a_higher_cost(Function(AFTER[mixing], body=nn.Linear(5, 3)), check)


def test_samples_that_mix_before_the_first_layer_are_as_good_as_any() -> None:
    model = Function(lambda m, x: m.body(x - x.mean(0)), body=nn.Linear(5, 3)).double()  # type: ignore[operator]
    problem = Problem(model, nn.CrossEntropyLoss(), *_batch())
    _assert_exact(Capture(model, problem.criterion), problem)


@pytest.mark.filterwarnings("ignore::host_client.curvature.errors.CurvatureFallback")
def test_a_parameter_that_mixes_samples_before_anything_else_does() -> None:
    """Each sample's outputs have a Jacobian still, though it has contributions of all inputs."""
    model = Function(lambda m, x: m.head(m.mix @ x), mix=parameter(4, 4), head=nn.Linear(5, 3)).double()  # type: ignore[operator]
    problem = Problem(model, nn.CrossEntropyLoss(), *_batch())
    _assert_exact(Capture(model, problem.criterion), problem)


def _batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])


def _assert_exact_at_a_higher_cost(model: nn.Module, check: Check = "first") -> None:
    """F is that of dense autograd, and one warning names the layer whose samples do not lie apart."""
    criterion = nn.CrossEntropyLoss()
    problem = Problem(model.double(), criterion, *_batch())
    capture = Capture(problem.model, criterion, check=check)
    with pytest.warns(CurvatureFallback) as said:
        _assert_exact(capture, problem)
    assert [str(one.message).split("'")[1] for one in said] == ["body"]
    _assert_exact(capture, problem)  # without another warning, which would be an error


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss], ids=lambda criterion: criterion.__name__
)
def test_a_loss_for_each_sample(criterion: type[nn.Module]) -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(UnsupportedCriterion, match=r"criterion\.reduction is 'none'.*'mean' or 'sum'") as refused:
        Capture(model, criterion(reduction="none"))
    assert refused.value.field == "reduction"
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


class FourthPower(nn.Module):
    """A loss of one's own."""

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """The mean of the fourth power."""
        return (z - t).pow(4).mean()


@pytest.mark.parametrize("kind", ["exact", "mc"])
@pytest.mark.parametrize(
    ("criterion", "name"),
    [
        (nn.L1Loss(), "L1"),
        (nn.CTCLoss(), "CTCLoss"),
        (nn.MultiMarginLoss(), "MultiMarginLoss"),
        (nn.CosineEmbeddingLoss(), "CosineEmbeddingLoss"),
        (FourthPower(), "FourthPower"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_loss_whose_curvature_is_not_known_is_refused_with_the_ways_out(
    criterion: nn.Module, name: str, kind: Kind
) -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(UnsupportedCriterion, match=rf"{name}.*curvature='empirical'"):
        Capture(model, criterion, curvature=kind)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    Capture(model, criterion, curvature="empirical").close()


class Interrupted(nn.Module):
    """Two linear layers with an exception in between, when one is set."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)
        self.error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        hidden = self.first(x).tanh()
        if self.error is not None:
            raise self.error
        logits: Tensor = self.last(hidden)
        return logits


@pytest.mark.parametrize("error", [ArithmeticError("of its own"), KeyboardInterrupt(), SystemExit()], ids=repr)
@pytest.mark.parametrize("then", ["train", "evaluate"])
def test_a_forward_pass_that_is_interrupted_leaves_nothing_behind(error: BaseException, then: str) -> None:
    """After an error at once; after an interrupt from the keyboard, of which torch tells no hook, with the next one."""
    model = Interrupted().double()
    problem = Problem(model, nn.CrossEntropyLoss(), *_batch())
    capture = Capture(model, problem.criterion)
    for _ in range(3):
        model.error = error
        with pytest.raises(type(error)) as raised:
            problem.outputs()
        assert raised.value is error
        if isinstance(error, Exception):
            assert not _get_current_function_mode_stack()
        # What is computed meanwhile belongs to no pass.
        (torch.randn(2, 5, dtype=torch.float64) @ model.first.weight.T).sum().backward()
        model.error = None
        if then == "evaluate":
            with torch.no_grad():
                problem.outputs()
            assert not _get_current_function_mode_stack()
        _assert_exact(capture, problem)
        assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("closed", [False, True], ids=["let go", "closed"])
def test_an_interrupted_pass_of_a_capture_that_is_gone_leaves_nothing_behind(closed: bool) -> None:
    model = Interrupted().double()
    capture = Capture(model, nn.CrossEntropyLoss())
    model.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        model(_batch()[0])
    if closed:
        capture.close()
    del capture
    gc.collect()
    assert not _get_current_function_mode_stack()


def test_a_criterion_that_fails_leaves_nothing_behind() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        problem.criterion(problem.outputs(), torch.tensor([0, 1, 2]))
    assert not _get_current_function_mode_stack()
    _assert_exact(capture, problem)


def test_samples_that_mix_in_one_pass_alone_cost_more_in_that_pass_alone() -> None:
    model = Function(MIXING["mean over the samples"], body=nn.Linear(5, 5), head=nn.Linear(5, 3)).double()
    problem = Problem(model, nn.CrossEntropyLoss(), *_batch())
    capture = Capture(model, problem.criterion)
    for _ in range(2):
        model.function = MIXING["mean over the samples"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CurvatureFallback)
            _assert_exact(capture, problem)
        assert [type(block) for block in capture.operator.layers] == [Rows, Rows, LinearRows]
        model.function = lambda m, x: m.head(m.body(x).tanh())  # type: ignore[operator]
        _assert_exact(capture, problem)
        assert [type(block) for block in capture.operator.layers] == [LinearRows, LinearRows]


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference"])
def test_passes_that_do_not_train_capture_nothing(mode: str) -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    problem.model.train(mode != "eval")
    with {"eval": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]():
        problem.loss()
    with pytest.raises(RuntimeError, match=r"no training forward pass.*model\.train\(\)"):
        capture.operator  # noqa: B018
    problem.model.train()
    _assert_exact(capture, problem)


def test_a_validation_pass_between_forward_and_criterion_does_no_harm() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    outputs = problem.outputs()
    with torch.no_grad():
        problem.model.eval()
        problem.criterion(problem.model(torch.randn(9, 5, dtype=torch.float64)), torch.zeros(9, dtype=torch.long))
        problem.model.train()
    problem.criterion(outputs, problem.targets)
    a = capture.operator.dense()
    sizes = [p.numel() for p in problem.trained]
    assert_same_curvature(a.T @ a, curvature(problem, outputs), sizes, 1e-10)


@pytest.mark.parametrize("which", [0, 1], ids=["the first", "the second"])
def test_of_two_passes_the_criterion_gets_the_curvature_of_the_one_it_is_given(which: int) -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    twice = [problem.model(problem.inputs), problem.model(problem.inputs + 1)]
    problem.criterion(twice[which], problem.targets)
    a = capture.operator.dense()
    sizes = [p.numel() for p in problem.trained]
    assert_same_curvature(a.T @ a, curvature(problem, twice[which]), sizes, 1e-10)


def test_a_sum_of_two_passes_has_the_curvature_of_both() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    outputs = problem.model(problem.inputs) + problem.model(problem.inputs + 1)
    problem.criterion(outputs, problem.targets)
    a = capture.operator.dense()
    sizes = [p.numel() for p in problem.trained]
    assert_same_curvature(a.T @ a, curvature(problem, outputs), sizes, 1e-10)


def test_without_a_call_of_the_criterion_there_is_no_curvature() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    F.cross_entropy(problem.outputs(), problem.targets).backward()
    with pytest.raises(RuntimeError, match="criterion"):
        capture.operator_of_gradients()


def test_a_criterion_given_something_else_than_the_models_output_leaves_no_curvature() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    problem.outputs()
    problem.criterion(torch.randn(4, 3, dtype=torch.float64, requires_grad=True), problem.targets)
    with pytest.raises(RuntimeError, match="no training forward pass with a loss has been captured"):
        capture.operator  # noqa: B018


def test_outputs_cut_off_from_the_model_leave_no_curvature() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    problem.criterion(problem.outputs().detach(), problem.targets)
    with pytest.raises(RuntimeError, match="no training forward pass with a loss has been captured"):
        capture.operator  # noqa: B018


def test_other_threads_are_not_recorded() -> None:
    """Torch's function modes belong to a thread; a data loader's arithmetic in another is none of the capture's."""
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    stacks: list[list[object]] = []

    def look() -> None:
        stacks.append(list(_get_current_function_mode_stack()))

    class Looking(nn.Tanh):
        """Looks around from another thread in the middle of a forward pass."""

        def forward(self, x: Tensor) -> Tensor:
            """As the parent."""
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            return super().forward(x)

    problem.model[1] = Looking()  # type: ignore[index]
    _assert_exact(capture, problem)
    assert stacks == [[]]


class LargestOfPairs(nn.Module):
    """The larger of each entry and a copy of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        twice = (x * self.weight).repeat_interleave(2, 0)
        return torch.segment_reduce(twice, "max", lengths=torch.full((len(x),), 2), axis=0)


@pytest.mark.parametrize("check", ["first", "never"])
def test_largest_entries_that_occur_twice_share_cotangents_of_either_sign(check: Check) -> None:
    """Torch shares those above zero only (2.13); columns of the loss have both signs, one-hot vectors have not."""
    torch.manual_seed(0)
    model, criterion = LargestOfPairs(), nn.CrossEntropyLoss()
    problem = Problem(model, criterion, torch.randn(4, 5, dtype=torch.float64), torch.arange(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureFallback)
        _assert_exact(Capture(model, criterion, check=check), problem)
