"""Parameters that scale or shift: sums, products and normalisations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from host_client.curvature.axis import Axis
from host_client.curvature.graph import Call, fit
from host_client.curvature.rules.base import Axes, Operation, Rule, ToRows, with_one
from host_client.curvature.rules.elementwise import Elementwise
from host_client.curvature.rules.shapes import Expand, Moving, repeated


@dataclass(frozen=True)
class Term:
    """y = … + scale · factor ⊙ θ, with θ broadcast to y.

    Attributes:
        aligned: shape of θ with as many dimensions as y; 1 where it is broadcast.
        factor: returns the factor, which broadcasts to y, in a dtype; None for 1.
        scale: a number.
    """

    aligned: tuple[int, ...]
    factor: Callable[[torch.dtype], Tensor] | None = None
    scale: float = 1.0


@dataclass
class Broadcast(Operation):
    """A function that is linear in arguments that broadcast.

    Attributes:
        terms: by role.
    """

    roles: dict[int, str]
    shape: torch.Size
    terms: dict[str, Term]

    def rows(self, role: str, axis: Axis, dtype: torch.dtype) -> ToRows:
        """The cotangents times the factor, summed where the parameter is broadcast."""
        term = self.terms[role]
        factor = None if term.factor is None else axis.by_sample(term.factor(dtype).expand(self.shape), 0)
        summed = [d + 2 for d, extent in enumerate(axis.rest(term.aligned, self.shape)) if extent == 1]

        def rows(cotangents: Tensor) -> Tensor:
            delta = axis.by_sample(cotangents, 1)
            if factor is not None:
                delta = delta * factor
            if summed:
                delta = delta.sum(summed)
            return (delta if term.scale == 1.0 else delta * term.scale).reshape(*delta.shape[:2], -1)

        return rows


def aligned(shape: Sequence[int], dims: int) -> tuple[int, ...]:
    """Return a shape with ones before it, for `dims` dimensions."""
    return (1,) * (dims - len(shape)) + tuple(shape)


def linear_in(call: Call, terms: dict[int, Term]) -> Operation | None:
    """Return a real function that is linear in some of its arguments, by their numbers."""
    if call.dtypes[0].is_complex or any(call.behind(edge)[0].dtypes[0].is_complex for edge in terms):
        return None
    roles = {edge: f"argument {edge}" for edge in terms}
    return Broadcast(roles, call.outputs[0], {roles[edge]: term for edge, term in terms.items()})


class Sum(Elementwise):
    """`torch.add` and `torch.sub`.

    Args:
        sign: of the second term.
    """

    def __init__(self, sign: float) -> None:
        self._sign = sign

    def operation(self, call: Call) -> Operation | None:
        """Both terms; the second has a factor."""
        alpha: Any = call.saved("alpha")
        if isinstance(alpha, complex):
            return None
        scales, dims = (1.0, self._sign * alpha), len(call.outputs[0])
        return linear_in(
            call,
            {e: Term(aligned(call.argument(e), dims), scale=scales[e]) for e, place in enumerate(call.edges) if place},
        )


class Times(Elementwise):
    """`torch.mul` of two tensors."""

    def operation(self, call: Call) -> Operation | None:
        """Each argument, scaled by the other."""
        terms = {}
        for edge, other in enumerate(("other", "self")):
            if call.edges[edge] is not None:
                factor = call.saved_tensor(other)
                if factor.is_complex():
                    return None
                terms[edge] = Term(aligned(call.argument(edge), len(call.outputs[0])), factor.to)
        return linear_in(call, terms)


class Expanded(Expand):
    """`Tensor.expand`."""

    def operation(self, call: Call) -> Operation | None:
        """The argument, at each place it is repeated to."""
        return linear_in(call, {0: Term(aligned(call.argument(0), len(call.outputs[0])))})


@dataclass
class Repetition(Operation):
    """A vector of n elements that is repeated, such as the weight of an instance norm."""

    roles: dict[int, str]
    shape: torch.Size
    n: int

    def rows(self, role: str, axis: Axis, dtype: torch.dtype) -> ToRows:
        """The cotangents, summed over the repetitions that a sample has."""
        return lambda cotangents: axis.by_sample(cotangents, 1).reshape(len(cotangents), axis.count, -1, self.n).sum(2)


class Repeat(Moving):
    """`Tensor.repeat`."""

    def operation(self, call: Call) -> Operation | None:
        """A vector, repeated in its own dimension, or a number."""
        if len(call.outputs[0]) != 1:
            return None
        return Repetition({0: "vector"}, call.outputs[0], call.argument(0).numel())

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in any dimension that keeps its extent; a vector that is repeated for each sample has none."""
        axis = with_one(axes)
        if axis is not None and len(call.outputs[0]) == 1 and axis.inner % call.argument(0).numel() == 0:
            return [None]
        return super().follow(call, axes)


class Norm(Rule):
    """A normalisation whose result is scaled by a weight and shifted by a bias.

    Attributes:
        weight: number of the argument that is the weight; the bias follows.
    """

    weight = 1

    def operation(self, call: Call) -> Operation | None:
        """The weight scales the normalised input, the bias shifts it."""
        terms = {}
        shape = self._shape(call)
        if call.edges[self.weight] is not None:
            terms[self.weight] = Term(shape, lambda dtype: self._normalised(call, dtype))
        if call.edges[self.weight + 1] is not None:
            terms[self.weight + 1] = Term(shape)
        return linear_in(call, terms)

    def carry(self, call: Call, cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        """The cotangents of the input without those of weight and bias."""
        cotangent = cotangents[0]
        if cotangent is None or any(wanted[1:]) or call.edges[0] is None:
            return self.differentiate(call, cotangents)
        return [self._input(call, cotangent), *[None] * (len(call.edges) - 1)]

    def _shape(self, call: Call) -> tuple[int, ...]:
        """Shape of weight and bias, with the dimensions of the output."""
        raise NotImplementedError

    def _normalised(self, call: Call, dtype: torch.dtype) -> Tensor:
        """The input before it is scaled and shifted."""
        raise NotImplementedError

    def _input(self, call: Call, cotangent: Tensor) -> Tensor:
        """The cotangent of the input."""
        raise NotImplementedError


class LayerNorm(Norm):
    """`torch.nn.functional.layer_norm`."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in the dimensions before the normalised ones."""
        axis, normalised = with_one(axes), len(call.saved("normalized_shape"))  # type: ignore[arg-type]
        if axis is None or axis.dim >= len(call.outputs[0]) - normalised:
            return None
        return [axis, None, None]

    def _shape(self, call: Call) -> tuple[int, ...]:
        return aligned(call.saved("normalized_shape"), len(call.outputs[0]))  # type: ignore[arg-type]

    def _normalised(self, call: Call, dtype: torch.dtype) -> Tensor:
        x, mean, scale = (call.saved_tensor(name).to(dtype) for name in ("input", "result1", "result2"))
        return (x - mean) * scale

    def _input(self, call: Call, cotangent: Tensor) -> Tensor:
        node: Any = call.node
        found: Tensor
        found, _, _ = torch.ops.aten.native_layer_norm_backward(
            cotangent, node._saved_input, node._saved_normalized_shape, node._saved_result1, node._saved_result2,
            node._saved_weight, node._saved_bias, [True, False, False],
        )  # fmt: skip
        return found


class ChannelNorm(Norm):
    """A normalisation with a weight and a bias for each channel, (n, channels, …)."""

    def _shape(self, call: Call) -> tuple[int, ...]:
        shape = call.outputs[0]
        return (1, shape[1], *[1] * (len(shape) - 2))


class GroupNorm(ChannelNorm):
    """`torch.nn.functional.group_norm`."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in dimension 0."""
        axis = with_one(axes)
        return [axis, None, None] if axis is not None and axis.dim == 0 else None

    def _normalised(self, call: Call, dtype: torch.dtype) -> Tensor:
        x, groups = call.saved_tensor("input").to(dtype), call.saved("group")
        mean, scale = (call.saved_tensor(name).to(dtype)[..., None] for name in ("result1", "result2"))
        grouped = x.reshape(len(x), groups, -1)  # type: ignore[call-overload]
        normalised: Tensor = ((grouped - mean) * scale).view_as(x)
        return normalised

    def _input(self, call: Call, cotangent: Tensor) -> Tensor:
        node: Any = call.node
        found: Tensor
        found, _, _ = torch.ops.aten.native_group_norm_backward(
            cotangent.contiguous(), node._saved_input.contiguous(), node._saved_result1, node._saved_result2,
            node._saved_weight, node._saved_N, node._saved_C, node._saved_HxW, node._saved_group, [True, False, False],
        )  # fmt: skip
        return found


class BatchNorm(ChannelNorm):
    """`torch.nn.functional.batch_norm`, with statistics that are held constant.

    In evaluation mode they are constant. In training mode they depend on all samples, so that no sample has rows of its
    own: the dependence is left out, which is an approximation. A batch of one image has statistics of its own, and so
    have all images of an instance norm, which are channels of one: there nothing is left out.
    """

    eps = "eps"
    """Name of ε among what the function has saved."""

    def constant(self, call: Call) -> bool:
        """Return whether the statistics are, or are held, constant."""
        return not call.saved("training") or call.outputs[0][0] > 1

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in dimension 0, or in the channels, of which each has a weight and a bias."""
        axis = with_one(axes)
        if axis is None or axis.dim > 1:
            return None
        if axis.dim == 1:
            return [axis, axis.at(0), axis.at(0)]
        return [axis, None, None] if self.constant(call) else None

    def approximation(self, call: Call) -> str | None:
        """Constant statistics, in training mode."""
        constant = call.saved("training") and self.constant(call)
        return "the dependence of its statistics on the batch" if constant else None

    def differentiate(self, call: Call, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Return the cotangents of all arguments, with constant statistics."""
        cotangent = cotangents[0]
        if cotangent is None or not self.constant(call):
            return call.differentiate(cotangents)
        normalised = self._normalised(call, cotangent.dtype)
        found = [self._input(call, cotangent), cotangent * normalised, cotangent]
        shape = self._shape(call)
        return [
            None if place is None else one if edge == 0 else fit(one, torch.Size(shape), one.dtype).flatten()
            for edge, (place, one) in enumerate(zip(call.edges, found, strict=True))
        ]

    def carry(self, call: Call, cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        """The cotangents of the input, and where they have samples of weight and bias."""
        if any(wanted[1:]) or not self.constant(call):
            return self.differentiate(call, cotangents)
        return super().carry(call, cotangents, wanted)

    def _statistics(self, call: Call, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation of each channel, aligned with the output."""
        shape = self._shape(call)
        if call.saved("training"):
            mean, scale = call.saved_tensor("result1").to(dtype), call.saved_tensor("result2").to(dtype)
        else:
            mean, variance = (call.saved_tensor(f"running_{name}").to(dtype) for name in ("mean", "var"))
            scale = (variance + call.saved(self.eps)).rsqrt()  # type: ignore[operator]
        return mean.view(shape), scale.view(shape)

    def _normalised(self, call: Call, dtype: torch.dtype) -> Tensor:
        mean, scale = self._statistics(call, dtype)
        return (call.saved_tensor("input").to(dtype) - mean) * scale

    def _input(self, call: Call, cotangent: Tensor) -> Tensor:
        _, scale = self._statistics(call, cotangent.dtype)
        weight: Any = call.saved("weight")
        factor: Tensor = scale if weight is None else scale * weight.detach().view(scale.shape)
        return (cotangent * factor).to(cotangent.dtype)  # under autocast the weight is in another dtype


class CudnnBatchNorm(BatchNorm):
    """The same by cuDNN, as images on a GPU are normalised."""

    eps = "epsilon"


class RMSNorm(LayerNorm):
    """`torch.nn.functional.rms_norm`, where it is one function: on a GPU."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in the dimensions before the normalised ones."""
        found = super().follow(call, axes)
        return None if found is None else found[:2]

    def operation(self, call: Call) -> Operation | None:
        """The weight scales the normalised input."""
        if call.edges[1] is None:
            return None
        return linear_in(call, {1: Term(self._shape(call), lambda dtype: self._normalised(call, dtype))})

    def carry(self, call: Call, cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        """The cotangents of the input without those of the weight."""
        cotangent = cotangents[0]
        if cotangent is None or cotangents[1] is not None or any(wanted[1:]) or call.edges[0] is None:
            return self.differentiate(call, cotangents)
        return [self._input(call, cotangent), None]

    def _normalised(self, call: Call, dtype: torch.dtype) -> Tensor:
        return call.saved_tensor("input").to(dtype) * call.saved_tensor("result1").to(dtype)

    def _input(self, call: Call, cotangent: Tensor) -> Tensor:
        scale = call.saved_tensor("result1")
        x, delta = call.saved_tensor("input").to(scale.dtype) * scale, cotangent.to(scale.dtype)
        weight: Any = call.saved("weight")
        delta = delta if weight is None else delta * weight.detach()
        dims = tuple(range(-len(call.saved("normalized_shape")), 0))  # type: ignore[arg-type]
        return ((delta - x * (delta * x).mean(dims, keepdim=True)) * scale).to(cotangent.dtype)


RULES: dict[str, Rule] = {
    "AddBackward0": Sum(1.0),
    "SubBackward0": Sum(-1.0),
    "MulBackward0": Times(),
    "ExpandBackward0": Expanded(),
    "RepeatBackward0": Repeat(repeated),
    "NativeLayerNormBackward0": LayerNorm(),
    "NativeGroupNormBackward0": GroupNorm(),
    "NativeBatchNormBackward0": BatchNorm(),
    "CudnnBatchNormBackward0": CudnnBatchNorm(),
    "FusedRmsNormBackward0": RMSNorm(),
}
"""Rules by the name of the node."""
