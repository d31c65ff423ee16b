import torch
from torch import nn

from host_client.curvature.kronecker.factors import ReplayedBatch, kronecker, library
from host_client.curvature.kronecker.operator import KroneckerFactors, LayerFactors
from host_client.random_state import RandomState


def moment(n: int, rank: int) -> torch.Tensor:
    rows = torch.randn(rank, n, dtype=torch.float64)
    return rows.T @ rows


def test_products_and_solutions_are_those_of_the_matrix_in_full() -> None:
    torch.manual_seed(0)
    # A weight and its bias, a bias alone, and a weight alone; singular factors, and parameters in disorder.
    blocks = [
        LayerFactors((2, 0), moment(4, 2), moment(3, 2)),
        LayerFactors((3,), torch.ones(1, 1).double(), moment(2, 1)),
    ]
    blocks.append(LayerFactors((1,), moment(2, 2), moment(5, 3)))
    sizes = [3, 10, 9, 2]
    curvature = KroneckerFactors(blocks, sizes)
    dense = torch.stack([curvature.curvature(row) for row in torch.eye(24, dtype=torch.float64)])
    torch.testing.assert_close(dense, dense.T)
    assert torch.linalg.eigvalsh(dense)[0] > -1e-9
    assert dense[:3, 3:13].abs().max() == dense[3:13, 13:].abs().max() == dense[:3, 22:].abs().max() == 0
    assert dense[:3, 13:22].abs().max() > 0
    drive = torch.randn(24, dtype=torch.float64)
    for damping in (1e-3, 0.5):
        expected = torch.linalg.solve(dense + damping * torch.eye(24, dtype=torch.float64), drive)
        torch.testing.assert_close(curvature.solve(drive, damping), expected, rtol=1e-8, atol=1e-8)


def test_products_are_those_of_the_librarys_own_operator() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4, bias=False)).double()
    inputs, targets = torch.randn(7, 1, 5, 5, dtype=torch.float64), torch.randint(4, (7,))
    parameters, criterion = list(model.parameters()), nn.CrossEntropyLoss()
    ours = kronecker(model, criterion, parameters, [ReplayedBatch(inputs, targets, RandomState.now())], kind="exact")
    theirs = library().KFACLinearOperator(
        model,
        criterion,
        parameters,
        [(inputs, targets)],
        fisher_type="type-2",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    v = torch.randn(sum(p.numel() for p in parameters), dtype=torch.float64)
    torch.testing.assert_close(ours.curvature(v), theirs @ v)
    inverse = library().KFACInverseLinearOperator(theirs, damping=0.1, use_exact_damping=True)
    torch.testing.assert_close(ours.solve(v, 0.1), inverse @ v)
