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
from tests.host_client.curvature.oracle import assert_captured, assert_exact, assert_same_curvature, curvature
from tests.networks import ConstantStatistics, Function, parameter
from tests.torch_state import count_hooks, function_modes


def _problem(name: str = "mlp") -> Problem:
    return named(name).problem()


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
        assert_exact(capture, problem)


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
"""Between two layers."""

AFTER: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "mean over the samples, last": lambda m, x: m.body(x) - m.body(x).mean(0),  # type: ignore[operator]
    "three samples, and the first one again": lambda m, x: m.body(x)[[0, 1, 2, 0]],  # type: ignore[operator]
    "three samples, joined with the first one": lambda m, x: (lambda z: torch.cat([z[:3], z[:1]]))(m.body(x)),  # type: ignore[operator]
}
"""After the last layer."""


@pytest.mark.parametrize("mixing", [*MIXING, *AFTER])
@pytest.mark.parametrize("check", ["always", "never"])
def test_samples_that_mix_cost_more_and_have_the_exact_curvature(mixing: str, check: Check) -> None:
    """One warning names the layer whose samples do not lie apart."""
    if mixing in MIXING:
        model = Function(MIXING[mixing], body=nn.Linear(5, 5), head=nn.Linear(5, 3))
    else:
        model = Function(AFTER[mixing], body=nn.Linear(5, 3))
    problem = Problem(model.double(), nn.CrossEntropyLoss(), *_batch())
    capture = Capture(problem.model, problem.criterion, check=check)
    with pytest.warns(CurvatureFallback) as said:
        assert_exact(capture, problem)
    assert [str(one.message).split("'")[1] for one in said] == ["body"]
    assert_exact(capture, problem)  # without another warning, which would be an error


def test_samples_that_mix_before_the_first_layer_are_as_good_as_any() -> None:
    model = Function(lambda m, x: m.body(x - x.mean(0)), body=nn.Linear(5, 3)).double()  # type: ignore[operator]
    problem = Problem(model, nn.CrossEntropyLoss(), *_batch())
    assert_exact(Capture(model, problem.criterion), problem)


@pytest.mark.filterwarnings("ignore::host_client.curvature.errors.CurvatureFallback")
def test_a_parameter_that_mixes_samples_before_anything_else_does() -> None:
    """Each sample's outputs have a Jacobian still, though it has contributions of all inputs."""
    model = Function(lambda m, x: m.head(m.mix @ x), mix=parameter(4, 4), head=nn.Linear(5, 3)).double()  # type: ignore[operator]
    problem = Problem(model, nn.CrossEntropyLoss(), *_batch())
    assert_exact(Capture(model, problem.criterion), problem)


def _batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("kind", ["exact", "mc"])
@pytest.mark.parametrize(
    ("criterion", "message"),
    [(nn.L1Loss(), "L1.*curvature='empirical'"), (nn.MSELoss(reduction="none"), "reduction is 'none'")],
)
def test_a_loss_that_is_refused_leaves_the_model_as_it_was(criterion: nn.Module, message: str, kind: Kind) -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(UnsupportedCriterion, match=message):
        Capture(model, criterion, curvature=kind)
    assert not count_hooks(model)
    Capture(model, nn.L1Loss(), curvature="empirical").close()


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
    """After an error at once; after a keyboard interrupt, for which torch calls no hook, with the next one."""
    model = Interrupted().double()
    problem = Problem(model, nn.CrossEntropyLoss(), *_batch())
    capture = Capture(model, problem.criterion)
    for _ in range(3):
        model.error = error
        with pytest.raises(type(error)) as raised:
            problem.outputs()
        assert raised.value is error
        if isinstance(error, Exception):
            assert not function_modes()
        # What is computed meanwhile belongs to no pass.
        (torch.randn(2, 5, dtype=torch.float64) @ model.first.weight.T).sum().backward()
        model.error = None
        if then == "evaluate":
            with torch.no_grad():
                problem.outputs()
            assert not function_modes()
        assert_exact(capture, problem)
        assert not function_modes()


@pytest.mark.parametrize("closed", [False, True], ids=["released", "closed"])
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
    assert not function_modes()


def test_a_criterion_that_fails_leaves_nothing_behind() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    with pytest.raises(ValueError, match="Expected input batch_size"):
        problem.criterion(problem.outputs(), torch.tensor([0, 1, 2]))
    assert not function_modes()
    assert_exact(capture, problem)


def test_samples_that_mix_in_one_pass_alone_cost_more_in_that_pass_alone() -> None:
    model = Function(MIXING["mean over the samples"], body=nn.Linear(5, 5), head=nn.Linear(5, 3)).double()
    problem = Problem(model, nn.CrossEntropyLoss(), *_batch())
    capture = Capture(model, problem.criterion)
    for _ in range(2):
        model.function = MIXING["mean over the samples"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CurvatureFallback)
            assert_exact(capture, problem)
        assert [type(block) for block in capture.operator.layers] == [Rows, Rows, LinearRows]
        model.function = lambda m, x: m.head(m.body(x).tanh())  # type: ignore[operator]
        assert_exact(capture, problem)
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
    assert_exact(capture, problem)


def test_a_validation_pass_between_forward_and_criterion_does_no_harm() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    outputs = problem.outputs()
    with torch.no_grad():
        problem.model.eval()
        problem.criterion(problem.model(torch.randn(9, 5, dtype=torch.float64)), torch.zeros(9, dtype=torch.long))
        problem.model.train()
    problem.criterion(outputs, problem.targets)
    assert_captured(capture.operator, problem, outputs)


@pytest.mark.parametrize("given", [lambda a, b: a, lambda a, b: b, torch.add], ids=["the first", "the second", "sum"])
def test_of_two_passes_the_criterion_gets_the_curvature_of_what_it_is_given(
    given: Callable[[Tensor, Tensor], Tensor],
) -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    outputs = given(problem.model(problem.inputs), problem.model(problem.inputs + 1))
    problem.criterion(outputs, problem.targets)
    assert_captured(capture.operator, problem, outputs)


def test_without_a_call_of_the_criterion_there_is_no_curvature() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    F.cross_entropy(problem.outputs(), problem.targets).backward()
    with pytest.raises(RuntimeError, match="call the criterion that the optimizer was given"):
        capture.operator_of_gradients()


@pytest.mark.parametrize("given", [torch.Tensor.detach, lambda z: torch.randn_like(z).requires_grad_()])
def test_a_criterion_given_something_else_than_the_models_output_leaves_no_curvature(
    given: Callable[[Tensor], Tensor],
) -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    problem.criterion(given(problem.outputs()), problem.targets)
    with pytest.raises(RuntimeError, match="no training forward pass with a loss has been captured"):
        capture.operator  # noqa: B018


def test_other_threads_are_not_recorded() -> None:
    """Torch's function modes belong to a thread; a data loader's arithmetic in another is none of the capture's."""
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    stacks: list[list[object]] = []

    def look() -> None:
        stacks.append(function_modes())

    class Looking(nn.Tanh):
        """Looks around from another thread in the middle of a forward pass."""

        def forward(self, x: Tensor) -> Tensor:
            """As the parent."""
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            return super().forward(x)

    problem.model[1] = Looking()  # type: ignore[index]
    assert_exact(capture, problem)
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
        assert_exact(Capture(model, criterion, check=check), problem)
