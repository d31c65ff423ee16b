"""Training iterations of each method, ready to be timed.

Methods that the paper (arXiv 2405.13817) describes with the Jacobian J in full are here in this form, and in the
structured one of this project, which keeps the factors of each layer's J and never multiplies them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from host_client.blocking import Session
from host_client.optimizers import NGD, make_optimizer
from host_client.solvers import ConjugateGradients, Solver, solve_woodbury
from host_client.solvers.protocol import Info
from spu_lab.benchmarks.iterations import model_product
from spu_lab.benchmarks.networks import Network
from spu_link.operators import FactorOperator, Operator, Rows
from spu_link.program import Program
from spu_server.timing import PARTS, Ledger, Timing

RATE: Final = 1e-4
"""η of all methods, small so that the network stays where it is."""

DAMPING: Final = 1e-3
"""λ."""

ANALOG_TIME: Final = 50.0
"""t in τ."""

TAU: Final = 1e-6
"""τ in s: R = 1 kΩ and C = 1 nF."""

CG: Final = ConjugateGradients(iterations=200, tolerance=1e-30)
"""c = 200 iterations, as in the paper; the tolerance is never met."""

FEW: Final = replace(CG, iterations=3)
"""For the profiler, whose trace grows with each iteration."""


@dataclass(frozen=True)
class Modelled:
    """Cost of an iteration outside the host, by the timing model of the device.

    Attributes:
        seconds: time of the solve.
        nbytes: values that the device holds, in its own precision.
    """

    seconds: float = 0.0
    nbytes: int = 0


Step: TypeAlias = Callable[[], Modelled]
"""Makes one iteration: forward pass, backward pass and update."""


Maker: TypeAlias = Callable[[Network, Session | None], Step]
"""Makes the iteration of a method for a network, and a session where the method runs through a device."""


@dataclass(frozen=True)
class Method:
    """A method in one of its forms.

    Attributes:
        label: for people.
        name: of the method in the paper, and in `METHOD_COLOURS`.
        make: makes its iteration.
        form: ``"paper"``, ``"structured"``, or ``"emulator"``.
        brief: makes the same with few iterations of its solver, which need as much memory; None where there are none.
        device: whether it runs through a device.
    """

    label: str
    name: str
    make: Maker
    form: str = "paper"
    brief: Maker | None = None
    device: bool = False


def _optimizer(name: str, **options: Any) -> Maker:
    def make(network: Network, session: Session | None) -> Step:
        optimizer = make_optimizer(name, network.model, network.criterion, session=session, lr=RATE, **options)
        return _iterate(network, optimizer)

    return make


def _by_solver(solver: Solver) -> Maker:
    def make(network: Network, session: Session | None) -> Step:
        return _iterate(network, NGD(network.model, network.criterion, solver=solver, lr=RATE, damping=DAMPING))

    return make


def _iterate(network: Network, optimizer: torch.optim.Optimizer) -> Step:
    def step() -> Modelled:
        network.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        info: Info = getattr(optimizer, "last_info", {})
        return info.get("modelled") or Modelled()

    return step


def _by_model_calls(solver: ConjugateGradients, network: Network, session: Session | None) -> Step:
    """Return NGD-CG as the paper has it, where each product F v is made by model calls."""
    parameters, product = network.trained(), model_product(network)

    def step() -> Modelled:
        gradient = parameters_to_vector(torch.autograd.grad(network.loss(), parameters))
        direction, _ = solver(product, gradient, DAMPING)
        with torch.no_grad():
            vector_to_parameters(parameters_to_vector(parameters) - RATE * direction, parameters)
        return Modelled()

    return step


def _explicit_woodbury(operator: Operator, drive: Tensor, damping: float) -> tuple[Tensor, Info]:
    """Solve with the rows of the Jacobian in full, O(b² d_z² N)."""
    return solve_woodbury(Rows(operator.dense()), drive, damping)


@dataclass(frozen=True)
class ModelledDevice:
    """A `Solver` that takes no time: it returns the drive, and reports the cost of the solve on a device.

    Attributes:
        timing: the device. With ``arrays="paper"`` the host makes the Jacobian in full, since the device is given its
            elements; else the device is given the factors.
    """

    timing: Timing = field(default_factory=Timing)

    def __call__(self, operator: Operator, drive: Tensor, damping: float, /) -> tuple[Tensor, Info]:
        """Return the drive, and the cost as ``"modelled"``."""
        assert isinstance(operator, FactorOperator)
        sent = Rows(operator.dense()) if self.timing.arrays == "paper" else operator
        ledger = Ledger(self.timing, TAU)
        ledger.upload(Program(sent, drive, damping=damping, noise=0.0, start="drive"), kept=False)
        ledger.run(sent, 0.0)
        ledger.read(sent.parameters, ANALOG_TIME)
        held = self.timing.resistors(sent) * self.timing.bits // 8
        return drive, {"modelled": Modelled(sum(ledger.numbers[part] for part in PARTS), held)}


METHODS: Final = {
    method.label: method
    for method in (
        Method("SGD", "SGD", _optimizer("sgd")),
        Method("Adam", "Adam", _optimizer("adam")),
        Method("NGD", "NGD", _optimizer("ngd", damping=DAMPING)),
        Method("NGD-CG", "NGD-CG", partial(_by_model_calls, CG), brief=partial(_by_model_calls, FEW)),
        Method("NGD-CG, structured", "NGD-CG", _by_solver(CG), "structured", brief=_by_solver(FEW)),
        Method("NGD-Woodbury", "NGD-Woodbury", _by_solver(_explicit_woodbury)),
        Method("NGD-Woodbury, structured", "NGD-Woodbury", _optimizer("ngd-woodbury", damping=DAMPING), "structured"),
        Method("K-FAC", "K-FAC", _optimizer("kfac", damping=DAMPING), "structured"),
        Method("TNGD, device", "TNGD", _by_solver(ModelledDevice(Timing(arrays="paper")))),
        Method("TNGD, device, structured", "TNGD", _by_solver(ModelledDevice()), "structured"),
        Method(
            "TNGD, emulator",
            "TNGD",
            _optimizer("tngd", damping=DAMPING, analog_time=ANALOG_TIME, start="drive"),
            "emulator",
            device=True,
        ),
    )
}
"""Methods by label."""
