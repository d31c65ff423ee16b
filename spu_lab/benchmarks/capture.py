"""Making the curvature factor of the reference network, compared with other ways to make it with PyTorch.

Every way starts with the forward pass of one batch. Before anything is timed, all are checked to give the same F v for
a random v, and the Monte-Carlo ones the same mean of vᵀF v.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from host_client.curvature import Capture
from host_client.curvature.losses import Kind
from spu_lab.benchmarks import poisson
from spu_lab.benchmarks.networks import BATCHES, NETWORKS, TITLES, Network, reference
from spu_lab.benchmarks.targets import Target
from spu_lab.benchmarks.timing import Subjects, alone, log, medians
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.task import Task

CURVATURES: tuple[Kind, ...] = ("exact", "mc")
PRODUCTS = 20
DRAWS = 100
"""Monte-Carlo factors whose mean is compared with the exact one."""

RATIOS = {
    "capture_exact_speedup_vs_jacrev": "the factor A = SᵀJ / √b in full from `torch.func` vmap(jacrev), the Jacobian "
    "of each sample's logits, over exact capture.",
    "capture_exact_speedup_vs_jacrev_alone": "vmap(jacrev) alone, in pieces and without S, over exact capture.",
    "capture_exact_speedup_vs_jacrev_of_batch": "jacrev of the whole batch's (b, d) logits, over exact capture.",
    "capture_exact_speedup_vs_backpack": "BackPACK's backward pass with SqrtGGNExact, over exact capture.",
    "capture_exact_vs_curvlinops_20_products": "exact capture and 20 products F v with what it gave, over 20 "
    "products of curvlinops' GGNLinearOperator, which never makes a factor.",
    "capture_exact_vs_plain_step": "exact capture, over one plain forward and backward pass.",
    "capture_mc_vs_plain_step": "Monte-Carlo capture (one sample), over one plain forward and backward pass.",
    "capture_mc_speedup_vs_backpack": "BackPACK's backward pass with SqrtGGNMC (one sample), over Monte-Carlo capture.",
    "step_with_exact_capture_vs_plain_step": "forward pass, exact capture and backward pass, over the same without "
    "capture.",
    "step_with_mc_capture_vs_plain_step": "likewise with Monte-Carlo capture.",
    **{
        f"capture_{curvature}_{name}": f"{words} capture with its forward pass, over one plain forward and backward "
        f"pass; {TITLES[name]}, b = {BATCHES[name]}."
        for name in NETWORKS
        for curvature, words in (("exact", "exact"), ("mc", "Monte-Carlo"))
    },
    "pinn_rows_vs_vmap": "the rows of a physics-informed network (Poisson, 257 parameters, 1,020 residuals) by "
    "forward passes with derivatives in the ordinary loop and capture, over the same rows from `torch.func` "
    "vmap(grad), written by hand: the fastest of three ways to write the Laplacian.",
}
TARGETS = {
    "capture_exact_speedup_vs_jacrev": Target("at least", 80),
    "capture_exact_speedup_vs_backpack": Target("at least", 30),
    "capture_mc_vs_plain_step": Target("at most", 2),
    "pinn_rows_vs_vmap": Target("at most", 2),
}


def run(
    batch: int = 64,
    rounds: int = 6,
    task: Callable[[], Task] = mnist,
    batches: Mapping[str, int] = BATCHES,
    points: tuple[int, int] = (poisson.INTERIOR, poisson.BOUNDARY),
) -> dict[str, Any]:
    """Measure; every side has its turn in each of `rounds` rounds, `torch.func` and BackPACK's exact way in fewer.

    Args:
        batch: samples of the reference network.
        rounds: how often each side has its turn.
        task: what the reference network is trained on.
        batches: samples in a batch of every network.
        points: of the physics-informed network, inside and on the boundary.
    """
    log.info("checking that all compute the same")
    make = partial(reference, batch, task)
    agreement = alone(check_agreement, make)
    seconds = medians(
        {
            "plain": partial(_plain, make),
            "ours": partial(_ours, make),
            "backpack": partial(_backpack_mc, make),
            "curvlinops": partial(_curvlinops, make),
        },
        rounds=rounds,
    )
    slow = {"func": partial(_func, make), "backpack": partial(_backpack_exact, make)}
    seconds |= medians(slow, rounds=max(1, rounds // 3), repeats=2, warmup=1)
    log.info("physics-informed network")
    agreement |= alone(poisson.check_rows, *points)
    pinn = medians(
        {"pinn_ours": partial(poisson.ours, *points), "pinn_func": partial(poisson.by_vmap, *points)}, rounds=rounds
    )
    seconds |= pinn
    by_hand = min(value for name, value in pinn.items() if name.startswith("pinn_func"))
    networks = {}
    for name, size in batches.items():
        make = partial(reference, size, task) if name == "reference" else partial(NETWORKS[name], size)
        log.info("capture of %s", name)
        sides = {f"{name}_plain": partial(_plain, make), f"{name}_ours": partial(_captures, make)}
        seconds |= medians(sides, rounds=max(1, rounds // 2), repeats=4)
        for curvature in CURVATURES:
            ratio = seconds[f"{name}_ours_{curvature}"] / seconds[f"{name}_plain_step"]
            networks[f"capture_{curvature}_{name}"] = ratio
    plain, exact, mc = seconds["plain_step"], seconds["ours_exact"], seconds["ours_mc"]
    return {
        "ratios": {
            "capture_exact_speedup_vs_jacrev": seconds["func_factor_by_jacrev"] / exact,
            "capture_exact_speedup_vs_jacrev_alone": seconds["func_jacrev"] / exact,
            "capture_exact_speedup_vs_jacrev_of_batch": seconds["func_jacrev_of_batch"] / exact,
            "capture_exact_speedup_vs_backpack": seconds["backpack_exact"] / exact,
            "capture_exact_vs_curvlinops_20_products": seconds["ours_exact_and_20_products"]
            / seconds["curvlinops_20_products"],
            "capture_exact_vs_plain_step": exact / plain,
            "capture_mc_vs_plain_step": mc / plain,
            "capture_mc_speedup_vs_backpack": seconds["backpack_mc"] / mc,
            "step_with_exact_capture_vs_plain_step": seconds["ours_exact_and_backward"] / plain,
            "step_with_mc_capture_vs_plain_step": seconds["ours_mc_and_backward"] / plain,
            **networks,
            "pinn_rows_vs_vmap": seconds["pinn_ours_rows"] / by_hand,
        },
        "seconds": seconds,
        "agreement": agreement,
        "batch": batch,
        "rounds": rounds,
    }


def check_agreement(make: Callable[[], Network]) -> dict[str, float]:
    """Largest relative differences between the ways; raises `ArithmeticError` when they are more than rounding or luck.

    Exact ones: of F v for one random v. Monte-Carlo ones: of the mean of vᵀF v over `DRAWS` draws, in standard errors.
    """
    torch.manual_seed(0)
    v = torch.randn(make().parameters)
    exact = capturing(make(), "exact")().curvature(v)
    rows = jacobian_ways(make())["factor_by_jacrev"]()
    products = {
        "jacrev": rows.T @ (rows @ v),
        "backpack": _factor_product(backpack_way(make(), exact=True)(), v),
        "curvlinops": ggn(make()) @ v,
    }
    found = {name: float((product - exact).norm() / exact.norm()) for name, product in products.items()}
    if max(found.values()) > 1e-3:
        raise ArithmeticError(f"the ways of computing F v differ: {found}")
    draws = {"mc": capturing(make(), "mc"), "backpack_mc": backpack_way(make(), exact=False)}
    for name, draw in draws.items():
        squares = torch.stack([_square(draw(), v) for _ in range(DRAWS)])
        found[f"{name}_standard_errors"] = float(abs(squares.mean() - v @ exact) / (squares.std() / DRAWS**0.5))
        if found[f"{name}_standard_errors"] > 6.0:
            raise ArithmeticError(f"the mean of Monte-Carlo factors is not the exact curvature: {found}")
    return found


def capturing(network: Network, curvature: Kind) -> Callable[[], Any]:
    """Forward pass and capture; returns the operator."""
    capture = Capture(network.model, network.criterion, curvature=curvature)

    def captured() -> Any:
        network.loss()
        return capture.operator

    return captured


def jacobian_ways(network: Network) -> dict[str, Callable[[], Any]]:
    """The ways of `torch.func`: ``jacrev``, ``factor_by_jacrev`` and ``jacrev_of_batch``."""
    model, inputs = network.model, network.inputs
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def logits(parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        output: Tensor = functional_call(model, dict(parameters), (inputs,))
        return output

    def jacobian() -> dict[str, Tensor]:
        found: dict[str, Tensor] = vmap(jacrev(lambda p, x: logits(p, x[None])[0]), (None, 0))(parameters, inputs)
        return found

    def factor() -> Tensor:
        flat = torch.cat([block.flatten(2) for block in jacobian().values()], dim=2)
        p = torch.softmax(logits(parameters, inputs), dim=1)
        root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
        return torch.einsum("bij,bin->jbn", root / len(inputs) ** 0.5, flat).flatten(0, 1)

    return {
        "jacrev": jacobian,
        "factor_by_jacrev": factor,
        "jacrev_of_batch": lambda: jacrev(partial(logits, inputs=inputs))(parameters),
    }


def backpack_way(network: Network, *, exact: bool) -> Callable[[], list[Tensor]]:
    """BackPACK's pass: one tensor (columns, b, *parameter) a parameter."""
    from backpack import backpack, extend
    from backpack.extensions import SqrtGGNExact, SqrtGGNMC

    model, criterion = extend(network.model), extend(nn.CrossEntropyLoss())
    extension = SqrtGGNExact() if exact else SqrtGGNMC(mc_samples=1)

    def factor() -> list[Tensor]:
        model.zero_grad()
        loss = criterion(model(network.inputs), network.targets)
        with backpack(extension), warnings.catch_warnings():
            # The inputs, a batch of images, need no gradient; BackPACK's hooks fire all the same.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss.backward()
        return [getattr(parameter, extension.savefield) for parameter in model.parameters()]

    return factor


def ggn(network: Network) -> Any:
    """Curvlinops' GGN, a linear operator on vectors of all parameters."""
    from curvlinops import GGNLinearOperator

    data = [(network.inputs, network.targets)]
    return GGNLinearOperator(network.model, network.criterion, network.trained(), data, check_deterministic=False)


def _plain(make: Callable[[], Network]) -> Subjects:
    network = make()

    def step() -> None:
        network.model.zero_grad()
        network.loss().backward()

    return {"step": step}


def _captures(make: Callable[[], Network]) -> Subjects:
    return {curvature: capturing(make(), curvature) for curvature in CURVATURES}


def _ours(make: Callable[[], Network]) -> Subjects:
    subjects: dict[str, Callable[[], object]] = {}
    for curvature in CURVATURES:
        subjects[curvature] = capturing(make(), curvature)
        subjects[f"{curvature}_and_backward"] = _with_backward(make(), curvature)
    captured = capturing(make(), "exact")
    v = torch.randn(make().parameters)

    def products() -> None:
        operator = captured()
        for _ in range(PRODUCTS):
            operator.curvature(v)

    return {**subjects, f"exact_and_{PRODUCTS}_products": products}


def _with_backward(network: Network, curvature: Kind) -> Callable[[], None]:
    capture = Capture(network.model, network.criterion, curvature=curvature)

    def step() -> None:
        network.model.zero_grad()
        capture.forget_gradients()
        network.loss().backward()
        assert capture.operator_of_gradients().parameters

    return step


def _func(make: Callable[[], Network]) -> Subjects:
    return jacobian_ways(make())


def _backpack_exact(make: Callable[[], Network]) -> Subjects:
    return {"exact": backpack_way(make(), exact=True)}


def _backpack_mc(make: Callable[[], Network]) -> Subjects:
    return {"mc": backpack_way(make(), exact=False)}


def _curvlinops(make: Callable[[], Network]) -> Subjects:
    network = make()
    operator, v = ggn(network), torch.randn(network.parameters)

    def products() -> None:
        for _ in range(PRODUCTS):
            operator @ v

    return {f"{PRODUCTS}_products": products}


def _factor_product(factor: list[Tensor], v: Tensor) -> Tensor:
    """F v for a factor in BackPACK's form."""
    rows = torch.cat([part.flatten(2) for part in factor], dim=2).flatten(0, 1)
    product: Tensor = rows.T @ (rows @ v)
    return product


def _square(factor: Any, v: Tensor) -> Tensor:
    """The product vᵀF v for an operator, or for a factor in BackPACK's form."""
    product: Tensor = v @ (_factor_product(factor, v) if isinstance(factor, list) else factor.curvature(v))
    return product
