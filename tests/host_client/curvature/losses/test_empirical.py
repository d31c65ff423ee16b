import torch
from hypothesis import given, settings

from host_client.curvature.losses import loss_root
from tests.host_client.curvature.losses.problems import PROBLEMS, Problem
from tests.profiles import examples


@settings(max_examples=examples(200))
@given(PROBLEMS)
def test_the_column_is_each_samples_own_gradient_by_the_root_of_the_divisor(problem: Problem) -> None:
    column = loss_root(
        problem.criterion,
        problem.z,
        problem.target,
        samples=problem.samples,
        kind="empirical",
        draws=1,
        generator=None,
    )
    rows = len(problem.z) // problem.samples
    options = {**problem.options, "reduction": "sum"}
    gradients = []
    for i, (z, target) in enumerate(problem.by_sample()):
        own = {
            name: option[i * rows : (i + 1) * rows] if getattr(option, "shape", None) == problem.z.shape else option
            for name, option in options.items()
        }
        z = z.clone().requires_grad_()
        gradients.append(torch.autograd.grad(problem.kind(**own)(z, target), z)[0])
    # What torch divides by, as torch tells.
    divisor = problem.kind(**options)(problem.z, problem.target) / problem.criterion(problem.z, problem.target)
    torch.testing.assert_close(column, (torch.cat(gradients) / divisor.sqrt())[None], rtol=1e-9, atol=1e-12)
