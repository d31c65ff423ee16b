"""Operations of the kinds that surprise: in place, complex, in other precisions, with derivatives inside."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.host_client.curvature.exploration.operations import ANY, FIXED, Axes, Place, fold, one_of, operation

# In place


@operation("Tensor.add_", "Tensor.mul_", axis=FIXED)
def in_place_affine(at: Place, h: Tensor, axis: int) -> Tensor:
    result = h.movedim(axis, -1).clone()
    result.mul_(at.parameter("scale", h.shape[axis])).add_(at.parameter("shift", h.shape[axis]))
    return result.movedim(-1, axis)


@operation("torch.relu_", axis=FIXED)
def in_place_after_linear(at: Place, h: Tensor, axis: int) -> Tensor:
    return F.linear(h.movedim(axis, -1), at.parameter("weight", 2, h.shape[axis])).relu_().movedim(-1, axis)


@operation("Tensor.masked_fill_")
def in_place_mask(at: Place, h: Tensor) -> Tensor:
    return (h * at.parameter("scale", 1)).masked_fill_(at.data.mask(*h.shape), 0.5)


@operation("Tensor.index_add_", axis=ANY)
def in_place_index_add(at: Place, h: Tensor, axis: int) -> Tensor:
    rows = at.data.integers(h.shape[axis], h.shape[axis])
    return h.clone().index_add_(axis, rows, h * at.parameter("scale", 1))


@operation("Tensor.copy_", axis=ANY)
def in_place_slices(at: Place, h: Tensor, axis: int) -> Tensor:
    """A buffer that is filled slice by slice."""
    scale = at.parameter("scale")
    result = torch.empty_like(h)
    for number in range(h.shape[axis]):
        result.select(axis, number).copy_(scale * h.select(axis, number))
    return result


# Complex


@operation("torch.fft.rfft", "torch.fft.irfft", axis=ANY)
def gain_on_a_spectrum(at: Place, h: Tensor, axis: int) -> Tensor:
    spectrum = torch.fft.rfft(h, dim=axis).movedim(axis, -1)
    gain = at.parameter("gain", 25)[: spectrum.shape[-1]]
    return torch.fft.irfft((spectrum * gain).movedim(-1, axis), n=h.shape[axis], dim=axis)


@operation("torch.complex", "torch.view_as_real", axis=FIXED)
def complex_product(at: Place, h: Tensor, axis: int) -> Tensor:
    moved = h.movedim(axis, -1)
    weight = torch.complex(at.parameter("real", h.shape[axis], 1), at.parameter("imaginary", h.shape[axis], 1))
    return torch.view_as_real(moved.to(weight.dtype) @ weight).flatten(-2).movedim(-1, axis)


@operation("torch.polar", "torch.real")
def phase(at: Place, h: Tensor) -> Tensor:
    turn = torch.polar(torch.ones_like(h), h * at.parameter("frequency", 1))
    return (turn * turn.conj().roll(1, 0)).real


@operation("torch.fft.fft", "torch.abs", axis=ANY)
def power_spectrum(at: Place, h: Tensor, axis: int) -> Tensor:
    return torch.fft.fft(h, dim=axis).abs().square() * at.parameter("scale", 1)


# Precision


@operation("Tensor.to(float32)", precision=1e-4)
def single_precision(at: Place, h: Tensor) -> Tensor:
    return h.float().tanh().double()


@operation("Tensor.to(complex128)")
def cast_to_complex_and_back(at: Place, h: Tensor) -> Tensor:
    return (h.to(torch.complex128) * at.parameter("scale", 1).to(torch.complex128)).real


# Autograd functions


class _Cube(torch.autograd.Function):
    """x³ with a derivative of its own, computed by numpy, where vmap cannot follow."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 3)

    @staticmethod
    def backward(context: Any, cotangent: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2 * cotangent.detach().numpy())


class _Product(torch.autograd.Function):
    """A product with a weight whose derivatives are written out."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(context: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = context.saved_tensors
        return cotangent @ weight.T, x.T @ cotangent


class _RoundStraightThrough(torch.autograd.Function):
    """Rounding whose derivative is taken to be one."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.round(decimals=1)

    @staticmethod
    def backward(context: Any, cotangent: Tensor) -> Tensor:
        return cotangent


@operation("autograd.Function(numpy)")
def function_by_numpy(at: Place, h: Tensor) -> Tensor:
    return _Cube.apply(h.tanh() * at.parameter("scale", 1))


@operation("autograd.Function", axis=FIXED)
def function_with_a_weight(at: Place, h: Tensor, axis: int) -> Tensor:
    folded, back = fold(h, axis)
    return back(_Product.apply(folded, at.parameter("weight", h.shape[axis], 2)))


@operation("autograd.Function(straight through)")
def straight_through(at: Place, h: Tensor) -> Tensor:
    return _RoundStraightThrough.apply(h)


# Derivatives inside


@operation("torch.autograd.grad(create_graph)", axis=FIXED)
def force_of_an_energy(at: Place, h: Tensor, axis: int) -> Tensor:
    weight, readout = at.parameter("weight", h.shape[axis], 2), at.parameter("readout", 2)
    with torch.enable_grad():
        positions = h if h.requires_grad else h.clone().requires_grad_()
        energy = (positions.movedim(axis, -1) @ weight).tanh() @ readout
        (force,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    return force + energy.unsqueeze(axis)


@operation("torch.autograd.grad(create_graph)", "nn.Linear", axis=FIXED)
def force_of_a_network(at: Place, h: Tensor, axis: int) -> Tensor:
    layer = at.module("layer", lambda: nn.Linear(h.shape[axis], 2))
    readout = at.module("readout", lambda: nn.Linear(2, 1))
    with torch.enable_grad():
        positions = h.movedim(axis, -1)
        positions = positions if positions.requires_grad else positions.clone().requires_grad_()
        energy = readout(layer(positions).tanh())
        (force,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    return (force + energy).movedim(-1, axis)


@operation("torch.autograd.grad(create_graph)", axis=ANY)
def second_derivative(at: Place, h: Tensor, axis: int) -> Tensor:
    """As a network informed by physics has it: u(t) and u″(t), mixing along an axis."""
    frequency = at.parameter("frequency", 1)
    with torch.enable_grad():
        t = h if h.requires_grad else h.clone().requires_grad_()
        u = (frequency * t).sin() * t.roll(1, axis).tanh()
        (first,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), t, create_graph=True)
    return second + u


# torch.func refuses the hooks of a checkpoint.
@operation("torch.func.grad", "torch.func.vmap", axis=Axes(("fixed",), largest=4), recomputable=False)
def gradient_by_func(at: Place, h: Tensor, axis: int) -> Tensor:
    folded, back = fold(h, axis)
    weight = at.parameter("weight", h.shape[axis], 2)
    return back(torch.func.vmap(torch.func.grad(lambda row: (row @ weight).tanh().prod()))(folded))


@operation("torch.func.jvp", axis=FIXED, recomputable=False)
def directional_derivative(at: Place, h: Tensor, axis: int) -> Tensor:
    weight = at.parameter("weight", h.shape[axis], 2)
    moved = h.movedim(axis, -1)
    value, derivative = torch.func.jvp(lambda x: (x @ weight).tanh(), (moved,), (torch.ones_like(moved),))
    return (value + derivative).movedim(-1, axis)


@operation("torch.autograd.grad(parameter, create_graph)", axis=FIXED, inner=one_of(0.0, 0.3))
def inner_step(at: Place, h: Tensor, axis: int, inner: float) -> Tensor:
    """A weight after one inner step of gradient descent, as in meta-learning."""
    weight = at.parameter("weight", h.shape[axis])
    moved = h.movedim(axis, -1)
    with torch.enable_grad():
        start = weight if weight.requires_grad else weight.detach().requires_grad_()
        fit = (moved.detach() @ start).square().mean()
        (gradient,) = torch.autograd.grad(fit, start, create_graph=True)
    return (moved * (weight - inner * gradient)).movedim(-1, axis)
