"""What has no curvature of the form F = Σ over samples is refused, and an interrupted pass leaves nothing behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from host_client.curvature import Capture, UnsupportedCriterion, UnsupportedLayer
from spu_link.operators import LayerRows
from tests.cases import Problem, named
from tests.host_client.curvature.oracle import assert_same_curvature, curvature
from tests.networks import Function, parameter


def _problem(name: str = "mlp") -> Problem:
    return named(name).problem()


def _operator_at(capture: Capture, problem: Problem, outputs: Tensor) -> LayerRows:
    """What a training step with these outputs would take."""
    problem.criterion(outputs, problem.targets)
    return capture.operator


def _assert_exact(capture: Capture, problem: Problem) -> None:
    outputs = problem.outputs()
    problem.criterion(outputs, problem.targets)
    a = capture.operator.dense()
    sizes = [p.numel() for p in problem.trained]
    assert_same_curvature(a.T @ a, curvature(problem, outputs), sizes, 1e-10)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d, (3,)), (nn.BatchNorm2d, (3, 2, 2)), (nn.BatchNorm3d, (3, 1, 2, 2))]
)
def test_batch_norm_in_training_mode(
    norm: type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d], shape: tuple[int, ...], affine: bool, frozen: bool
) -> None:
    layer = norm(3, affine=affine).requires_grad_(not frozen)
    features = torch.Size(shape).numel()
    model = nn.Sequential(nn.Sequential(layer), nn.Flatten(), nn.Linear(features, 3)).double()
    criterion = nn.CrossEntropyLoss()
    problem = Problem(model, criterion, torch.randn(4, *shape, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    capture = Capture(model, criterion)
    with pytest.raises(UnsupportedLayer, match=rf"'0\.0'.*{norm.__name__}.*batch.*eval"):
        problem.loss()
    assert not _get_current_function_mode_stack()
    layer.eval()
    _assert_exact(capture, problem)


def test_batch_norm_as_a_function() -> None:
    model = Function(
        lambda m, x: m.head(F.batch_norm(x, None, None, training=True)),  # type: ignore[operator]
        head=nn.Linear(5, 3),
    )
    _assert_refused(model, "batch")


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
def test_samples_that_mix_between_layers(mixing: str) -> None:
    _assert_refused(Function(MIXING[mixing], body=nn.Linear(5, 5), head=nn.Linear(5, 3)), "sample")


def test_samples_that_mix_after_the_last_layer() -> None:
    model = Function(lambda m, x: m.body(x) - m.body(x).mean(0), body=nn.Linear(5, 3))  # type: ignore[operator]
    _assert_refused(model, "sample")


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


def _assert_refused(model: nn.Module, word: str) -> None:
    """An error that names the cause; never a wrong operator."""
    criterion = nn.CrossEntropyLoss()
    problem = Problem(model.double(), criterion, *_batch())
    capture = Capture(problem.model, criterion)
    with pytest.raises(UnsupportedLayer, match=word):
        problem.loss()
    assert not _get_current_function_mode_stack()
    with pytest.raises(RuntimeError):
        capture.operator  # noqa: B018


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss], ids=lambda criterion: criterion.__name__
)
def test_a_loss_for_each_sample(criterion: type[nn.Module]) -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(UnsupportedCriterion, match=r"criterion\.reduction is 'none'.*'mean' or 'sum'"):
        Capture(model, criterion(reduction="none"))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("criterion", [nn.NLLLoss(), nn.L1Loss(), nn.HuberLoss(), nn.BCELoss()], ids=str)
def test_a_loss_whose_curvature_is_not_known(criterion: nn.Module) -> None:
    with pytest.raises(UnsupportedCriterion, match=type(criterion).__name__):
        Capture(nn.Linear(5, 3), criterion)


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


def test_a_layer_refused_in_one_pass_does_not_spoil_the_next() -> None:
    model = Function(MIXING["mean over the samples"], body=nn.Linear(5, 5), head=nn.Linear(5, 3)).double()
    problem = Problem(model, nn.CrossEntropyLoss(), *_batch())
    capture = Capture(model, problem.criterion)
    with pytest.raises(UnsupportedLayer):
        problem.loss()
    model.function = lambda m, x: m.head(m.body(x).tanh())  # type: ignore[operator]
    _assert_exact(capture, problem)


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
def test_of_two_passes_the_criterion_gets_the_curvature_of_the_one_it_is_given_or_says_why_not(which: int) -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    twice = [problem.model(problem.inputs), problem.model(problem.inputs + 1)]
    try:
        problem.criterion(twice[which], problem.targets)
    except (RuntimeError, ValueError) as refused:
        assert "forward" in str(refused)  # noqa: PT017 - either is well
        return
    a = capture.operator.dense()
    sizes = [p.numel() for p in problem.trained]
    assert_same_curvature(a.T @ a, curvature(problem, twice[which]), sizes, 1e-10)


def test_a_sum_of_two_passes_has_the_curvature_of_both_or_is_refused() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    outputs = problem.model(problem.inputs) + problem.model(problem.inputs + 1)
    try:
        problem.criterion(outputs, problem.targets)
    except (RuntimeError, ValueError) as refused:
        assert "forward" in str(refused)  # noqa: PT017 - either is well
        return
    a = capture.operator.dense()
    sizes = [p.numel() for p in problem.trained]
    assert_same_curvature(a.T @ a, curvature(problem, outputs), sizes, 1e-10)


def test_without_a_call_of_the_criterion_there_is_no_curvature() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    F.cross_entropy(problem.outputs(), problem.targets).backward()
    with pytest.raises(RuntimeError, match="criterion"):
        capture.operator_of_gradients()


def test_a_criterion_given_something_else_than_the_models_output_is_refused() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    problem.outputs()
    other = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises((UnsupportedLayer, RuntimeError)):
        _operator_at(capture, problem, other)


def test_outputs_cut_off_from_the_model_are_refused() -> None:
    problem = _problem()
    capture = Capture(problem.model, problem.criterion)
    with pytest.raises((UnsupportedLayer, RuntimeError), match=r"detach|cut off|gradient"):
        _operator_at(capture, problem, problem.outputs().detach())


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
