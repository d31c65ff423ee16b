"""Where a rule says that samples lie apart, they do: for every function of torch that has a rule.

A cotangent that is zero except in one sample must be zero, in an argument, wherever another sample lies by the axis of
the rule. This is tried for all dimensions of the outputs, with samples in blocks and in turns, for all calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from host_client.curvature.axis import WHOLE, Axis
from host_client.curvature.graph import Call, Graph
from host_client.curvature.rules import RULES

Made = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Function:
    """A function of tensors of some shapes.

    Attributes:
        node: name of the node that must be in its graph, without the number at its end.
        call: the function.
        shapes: of its arguments, several times.
        apart: dimensions of the first output in which samples are followed to some argument, in any of the shapes.
        positive: whether the arguments lie in (0.1, 0.9).
        dtype: of the arguments.
    """

    node: str
    call: Callable[..., Made]
    shapes: Sequence[Sequence[tuple[int, ...]]]
    apart: set[int]
    positive: bool = True
    dtype: torch.dtype = torch.float64
    name: str = field(default="")

    def __str__(self) -> str:
        return self.name or self.node


def candidates(shape: Sequence[int]) -> Iterator[Axis]:
    """All axes of two samples or more, those in turns and in blocks included."""
    for dim, n in enumerate(shape):
        for inner in range(1, n + 1):
            for count in range(2, n // inner + 1):
                if n % (inner * count) == 0:
                    yield Axis(dim, inner, dim % 2, count)


def labels(shape: Sequence[int], axis: Axis) -> Tensor:
    """The sample of each entry."""
    if axis.dim == WHOLE:
        return torch.full(tuple(shape), axis.start)
    along = torch.arange(shape[axis.dim]) // axis.inner % axis.count + axis.start
    return along.view(-1, *[1] * (len(shape) - axis.dim - 1)).expand(tuple(shape))


def combinations(call: Call) -> Iterator[list[Axis | None]]:
    """Return where samples may lie in the outputs: in one of them, or in all, there or not there alike."""
    for number, shape in enumerate(call.outputs):
        for axis in candidates(shape):
            yield [axis if number == other else None for other in range(len(call.outputs))]
    if len(call.outputs) > 1:
        for axis in candidates(call.outputs[0]):
            fits = all(len(s) > axis.dim and s[axis.dim] % (axis.inner * axis.count) == 0 for s in call.outputs)
            if fits:
                yield [axis for _ in call.outputs]
                other = Axis(axis.dim, axis.inner, axis.start + 1, axis.count)
                yield [axis, *[other for _ in call.outputs[1:]]]


def cotangents_of(call: Call, axes: Sequence[Axis | None], sample: int | None) -> list[Tensor | None]:
    """Random cotangents of the outputs, zero but in one sample; None for all of them."""
    made: list[Tensor | None] = []
    for shape, dtype, axis in zip(call.outputs, call.dtypes, axes, strict=True):
        if axis is None:
            made.append(None)
            continue
        cotangent = torch.randn(shape, dtype=dtype)
        made.append(cotangent if sample is None else cotangent.masked_fill(labels(shape, axis) != sample, 0.0))
    return made


def followed(call: Call, axes: Sequence[Axis | None]) -> list[Axis | None]:
    """Return where the samples lie in each argument, by the rule."""
    found = RULES[call.name].follow(call, axes)
    if found is None:
        return [None for _ in call.edges]
    assert len(found) == len(call.edges)
    return [axis if place is not None else None for axis, place in zip(found, call.edges, strict=True)]


def assert_apart(call: Call, axes: Sequence[Axis | None]) -> bool:
    """Samples lie apart in the arguments where the rule says so; false where it says so of none."""
    rule, found = RULES[call.name], followed(call, axes)
    if all(axis is None for axis in found):
        return False
    used = next(axis for axis in axes if axis is not None)
    for sample in range(used.start, used.start + used.count):
        arrived = rule.differentiate(call, cotangents_of(call, axes, sample))
        for edge, (axis, value) in enumerate(zip(found, arrived, strict=True)):
            if axis is not None and value is not None:
                elsewhere = value[labels(value.shape, axis) != sample]
                assert not elsewhere.any(), f"{call.name}: {axes} -> argument {edge}: {axis} is wrong"
    wanted, whole = [axis is not None for axis in found], cotangents_of(call, axes, None)
    carried, expected = rule.carry(call, whole, wanted), rule.differentiate(call, whole)
    for value, right, want in zip(carried, expected, wanted, strict=True):
        if want:
            torch.testing.assert_close(value, right, rtol=1e-9 if call.dtypes[0] == torch.float64 else 1e-4, atol=1e-9)
    return True


def calls_of(function: Function, shapes: Sequence[tuple[int, ...]]) -> list[Call]:
    """The calls in the graph of a function that have a rule."""
    arguments = [
        (torch.rand(shape, dtype=function.dtype) * 0.8 + 0.1)
        if function.positive
        else torch.randn(shape, dtype=function.dtype)
        for shape in shapes
    ]
    arguments = [argument.requires_grad_() for argument in arguments]
    made = function.call(*arguments)
    roots = [made] if isinstance(made, Tensor) else list(made)
    graph = Graph(roots, {id(argument): number for number, argument in enumerate(arguments)})
    return [call for call in graph.calls if call.parameter is None and call.name in RULES]


def _base(name: str) -> str:
    return name.rstrip("0123456789")


ONE = [[(4, 3)], [(2, 4, 3)], [(4,)]]
"""Shapes of one argument."""

TWO = [[(4, 3), (4, 3)], [(2, 4, 3), (3,)], [(2, 4, 3), (4, 1)], [(4, 1), (1, 3)], [(4, 3), ()], [(1, 4), (2, 1, 1)]]
"""Shapes of two arguments that broadcast."""


def _entries(names: str, call: Callable[[Any], Callable[..., Made]], shapes: Any, **options: Any) -> list[Function]:
    """One entry for each ``node:function`` or ``node``."""
    found = []
    for name in names.split():
        node, _, function = name.partition(":")
        found.append(Function(node + "Backward", call(function or node.lower()), shapes, {0, 1, 2}, **options))
    return found


UNARY = _entries(
    "Abs Acos Angle Asin Asinh Atan Atanh Ceil Cos Cosh Deg2Rad Digamma Erf Erfc Erfinv Exp Exp2 Expm1 Floor Frac I0 "
    "Lgamma Log Log10 Log1P Log2 Logit NanToNum:nan_to_num Neg Rad2Deg Reciprocal Relu Round Rsqrt Sgn Sigmoid Sign "
    "Sin Sinc Sinh Sqrt Tan Tanh Trunc Clone",
    lambda name: getattr(torch, name),
    ONE,
)
ACTIVATIONS = _entries(
    "Celu:celu Elu:elu Gelu:gelu Hardshrink:hardshrink Hardsigmoid:hardsigmoid Hardswish:hardswish Hardtanh:hardtanh "
    "Hardtanh:relu6 LeakyRelu:leaky_relu LogSigmoid:logsigmoid Mish:mish Silu:silu Softplus:softplus "
    "Softshrink:softshrink Elu:selu",
    lambda name: getattr(F, name),
    ONE,
    positive=False,
)
BINARY = _entries(
    "Add Sub Rsub Mul Div Atan2 Fmax Fmin Hypot Logaddexp Logaddexp2 Maximum Minimum Pow Remainder Fmod Xlogy Copysign",
    lambda name: getattr(torch, name),
    TWO,
)


def _differentiated(function: Callable[[Tensor], Tensor]) -> Callable[..., Made]:
    """The derivative of a function, whose graph has the derivative's own derivative; with a cotangent of its own."""

    def derivative(x: Tensor, v: Tensor) -> Tensor:
        y = function(x)
        (gradient,) = torch.autograd.grad(y, x, v, create_graph=True)
        return gradient

    return derivative


def _random(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def seeded(*arguments: Tensor) -> Tensor:
        torch.manual_seed(0)
        return function(*arguments)

    return seeded


def _hooked(x: Tensor) -> Tensor:
    """A module with a backward hook of the user."""
    module = torch.nn.Tanh()
    module.register_full_backward_hook(lambda *_: None)
    result: Tensor = module(x)
    return result


DERIVATIVES = [
    Function(
        f"{node}BackwardBackward", _differentiated(call), [[(4, 3)] * 2, [(2, 4, 3)] * 2], {0, 1, 2}, positive=False
    )
    for node, call in (
        ("Tanh", torch.tanh),
        ("Sigmoid", torch.sigmoid),
        ("Elu", F.elu),
        ("Gelu", F.gelu),
        ("Softplus", F.softplus),
        ("LeakyRelu", F.leaky_relu),
        ("LogSigmoid", F.logsigmoid),
        ("Threshold", torch.relu),
        ("Hardtanh", F.hardtanh),
        ("Hardswish", F.hardswish),
        ("Hardshrink", F.hardshrink),
        ("Softshrink", F.softshrink),
    )
] + [
    *[
        Function("MulBackward", _differentiated(call), [[(4, 3)] * 2, [(2, 4, 3)] * 2], {0, 1, 2}, name=name)
        for name, call in (
            ("derivative of silu", F.silu),
            ("derivative of mish", F.mish),
            ("derivative of logit", lambda x: torch.logit(x, 1e-3)),
            ("derivative of dropout", _random(lambda x: torch.native_dropout(x, 0.5, True)[0])),
        )
    ],
    Function("SoftmaxBackwardDataBackward", _differentiated(lambda x: x.softmax(-1)), [[(4, 3)] * 2], {0}),
    Function("SoftmaxBackwardDataBackward", _differentiated(lambda x: x.softmax(0)), [[(4, 3)] * 2], {1}),
    Function("SoftmaxBackwardDataBackward", _differentiated(lambda x: x.softmax(1)), [[(2, 4, 3)] * 2], {0, 2}),
    Function("LogSoftmaxBackwardDataBackward", _differentiated(lambda x: x.log_softmax(-1)), [[(2, 4, 3)] * 2], {0, 1}),
]

ELEMENTWISE = [
    Function("AcoshBackward", lambda x: torch.acosh(x + 1), ONE, {0, 1, 2}),
    Function("AddcmulBackward", torch.addcmul, [[(4, 3)] * 3, [(2, 4, 3), (3,), (4, 1)]], {0, 1, 2}),
    Function("AddcdivBackward", torch.addcdiv, [[(4, 3)] * 3, [(2, 4, 3), (3,), (4, 1)]], {0, 1, 2}),
    Function("LerpBackward", torch.lerp, [[(4, 3)] * 3, [(2, 4, 3), (3,), (4, 1)]], {0, 1, 2}),
    Function("LerpBackward", lambda x, y: torch.lerp(x, y, 0.3), TWO, {0, 1, 2}),
    Function("WhereBackward", lambda x, y: torch.where(x > y, x, y), TWO, {0, 1, 2}),
    Function("ClampBackward", lambda x: x.clamp(0.3, 0.6), ONE, {0, 1, 2}),
    Function("ClampBackward", torch.clamp, [[(4, 3), (3,), (4, 1)]], {0, 1}),
    Function("ClampMinBackward", lambda x: x.clamp_min(0.3), ONE, {0, 1, 2}),
    Function("ClampMinBackward", torch.clamp_min, TWO[:3], {0, 1, 2}),
    Function("ClampMaxBackward", lambda x: x.clamp_max(0.3), ONE, {0, 1, 2}),
    Function("ClampMaxBackward", torch.clamp_max, TWO[:3], {0, 1, 2}),
    Function("MaskedFillBackward", lambda x, v: x.masked_fill(x > 0.5, v), [[(4, 3), ()]], {0, 1}),
    Function(
        "MaskedFillBackward", lambda x: x.masked_fill(torch.eye(4, 3).bool(), 1.0), [[(4, 3)], [(2, 4, 3)]], {0, 1, 2}
    ),
    Function("FillBackward", lambda x, v: torch.fill(x, v), [[(4, 3), ()]], {0, 1}),
    Function("PolygammaBackward", lambda x: torch.polygamma(1, x), ONE, {0, 1, 2}),
    Function("PowBackward", lambda x: x**3, ONE, {0, 1, 2}),
    Function("PowBackward", lambda x: 2.0**x, ONE, {0, 1, 2}),
    Function(
        "PreluKernelBackward", F.prelu, [[(4, 3), (3,)], [(2, 4, 3), (4,)], [(4, 3), (1,)]], {0, 1, 2}, positive=False
    ),
    Function("ThresholdBackward", lambda x: F.threshold(x, 0.4, 0.0), ONE, {0, 1, 2}),
    Function("RreluWithNoiseBackward", _random(lambda x: F.rrelu(x, training=True)), ONE, {0, 1, 2}, positive=False),
    Function("NativeDropoutBackward", _random(lambda x: torch.native_dropout(x, 0.5, True)[0]), ONE, {0, 1, 2}),
    Function("ToCopyBackward", lambda x: x.float(), ONE, {0, 1, 2}),
    Function("AliasBackward", lambda x: torch.ops.aten.alias(x), ONE, {0, 1, 2}),
    Function("AddBackward", lambda x, y: torch.add(x, y, alpha=-2.5), TWO, {0, 1, 2}),
    Function("MulBackward", lambda x: x * x, ONE, {0, 1, 2}),
    Function("BackwardHookFunctionBackward", _hooked, ONE, {0, 1, 2}),
]

SHAPES = [
    Function("ViewBackward", lambda x: x.view(2, 2, 3), [[(4, 3)], [(2, 6)], [(12,)], [(2, 2, 3, 1)]], {0, 1, 2}),
    Function("ViewBackward", lambda x: x.view(12), [[(4, 3)], [(2, 2, 3)]], {0}),
    Function("ViewBackward", lambda x: x.view(4, 6), [[(2, 12)], [(8, 3)], [(2, 2, 2, 3)]], {0, 1}),
    Function("UnsafeViewBackward", lambda x: x.t().reshape(12), [[(4, 3)]], {0}),
    Function("UnsafeViewBackward", lambda x: x.transpose(0, 1).reshape(6, 4), [[(2, 3, 4)]], {0, 1}),
    Function("ExpandBackward", lambda x: x.expand(2, 4, 3), [[(4, 3)], [(1, 4, 1)], [(3,)], [(2, 1, 3)]], {0, 1, 2}),
    Function("RepeatBackward", lambda x: x.repeat(2, 1), [[(4, 3)]], {1}),
    Function("RepeatBackward", lambda x: x.repeat(1, 2, 1), [[(2, 4, 3)], [(4, 3)]], {0, 2}),
    Function("RepeatBackward", lambda x: x.repeat(4), [[(3,)]], set()),
    Function("RepeatBackward", lambda x: x.repeat(4), [[()]], set(), name="a number, repeated"),
    Function("TBackward", lambda x: x.t(), [[(4, 3)]], {0, 1}),
    Function("TransposeBackward", lambda x: x.transpose(0, -1), [[(2, 4, 3)], [(4, 3)]], {0, 1, 2}),
    Function("TransposeBackward", lambda x: x.transpose(-2, 1), [[(2, 4, 3, 2)]], {0, 1, 2, 3}),
    Function("PermuteBackward", lambda x: x.permute(2, 0, 1), [[(2, 4, 3)]], {0, 1, 2}),
    Function("PermuteBackward", lambda x: x.permute(-1, -4, 1, 2), [[(2, 4, 3, 5)]], {0, 1, 2, 3}),
    Function("UnsqueezeBackward", lambda x: x.unsqueeze(0), [[(4, 3)]], {1, 2}),
    Function("UnsqueezeBackward", lambda x: x.unsqueeze(-1), [[(4, 3)]], {0, 1}),
    Function("UnsqueezeBackward", lambda x: x.unsqueeze(1), [[(4, 3)]], {0, 2}),
    Function("SqueezeBackward", lambda x: x.squeeze(), [[(1, 4, 1, 3)], [(4, 3)]], {0, 1}),
    Function("SqueezeBackward", lambda x: x.squeeze(0), [[(1, 4, 1, 3)], [(4, 3)]], {0, 1, 2}),
    Function("SqueezeBackward", lambda x: x.squeeze(-2), [[(1, 4, 1, 3)]], {1, 2}),
    Function("SqueezeBackward", lambda x: x.squeeze((0, 1, -2)), [[(1, 4, 1, 3)]], {0, 1}),
    Function("SelectBackward", lambda x: x.select(0, 1), [[(2, 4, 3)]], {0, 1}),
    Function("SelectBackward", lambda x: x[:, -1], [[(2, 4, 3)]], {0, 1}),
    Function("SelectBackward", lambda x: x[..., 2], [[(2, 4, 3)]], {0, 1}),
    Function("SliceBackward", lambda x: x[1:3], [[(4, 3)], [(4, 2, 3)]], {1, 2}),
    Function("SliceBackward", lambda x: x[:, ::2], [[(2, 4, 3)]], {0, 2}),
    Function("SliceBackward", lambda x: x[:, -2:], [[(2, 2, 3)], [(2, 4, 3)]], {0, 1, 2}),
    Function("UnfoldBackward", lambda x: x.unfold(1, 2, 1), [[(4, 3)], [(2, 4, 3)]], {0, 2}),
    Function("UnfoldBackward", lambda x: x.unfold(0, 2, 2), [[(4, 3)]], {1}),
    Function("DiagonalBackward", lambda x: x.diagonal(), [[(4, 4)], [(4, 3, 2)]], {0}),
    Function("DiagonalBackward", lambda x: x.diagonal(1, 0, 2), [[(4, 2, 3)]], {0}),
    Function("DiagonalBackward", lambda x: x.diagonal(0, -2, -1), [[(2, 4, 4)], [(2, 3, 4, 4)]], {0, 1}),
    Function("SplitBackward", lambda x: x.split(2), [[(4, 3)], [(4, 2, 3)]], {1, 2}),
    Function("SplitBackward", lambda x: x.split(2, -1), [[(3, 4)], [(2, 3, 4)]], {0, 1}),
    Function("SplitBackward", lambda x: x.chunk(3, 1), [[(4, 6)], [(2, 6, 2)]], {0, 2}),
    Function("SplitWithSizesBackward", lambda x: x.split([1, 3], 0), [[(4, 3)]], {1}),
    Function("SplitWithSizesBackward", lambda x: x.split([2, 4], -2), [[(2, 6, 3)]], {0, 2}),
    Function("UnsafeSplitBackward", lambda x: torch.unsafe_split(x, 2, 1), [[(3, 4)]], {0}),
    Function("UnsafeSplitWithSizesBackward", lambda x: torch.unsafe_split_with_sizes(x, [1, 3], 1), [[(3, 4)]], {0}),
    Function("UnbindBackward", lambda x: x.unbind(), [[(4, 3)], [(3, 4, 2)]], {0, 1}),
    Function("UnbindBackward", lambda x: x.unbind(-1), [[(4, 3)], [(2, 4, 3)]], {0, 1}),
    Function("UnbindBackward", lambda x: x.unbind(1), [[(2, 4, 3)]], {0, 1}),
]


def _joined(*arguments: Tensor, dim: int = 0, before: int = 0, after: int = 0) -> Tensor:
    """Arguments joined with constants before and after them."""
    shape = list(arguments[0].shape)
    parts = list(arguments)
    for n, at in ((before, 0), (after, len(parts) + 1)):
        shape[dim] = n
        if n:
            parts.insert(at, torch.ones(shape, dtype=torch.float64))
    return torch.cat(parts, dim)


JOINED = [
    Function("CatBackward", _joined, [[(2, 3)] * 2, [(4, 3), (2, 3)], [(1, 3)] * 4, [(2, 3), (3, 3), (1, 3)]], {0, 1}),
    Function("CatBackward", _joined, [[(1, 3), (2, 3), (1, 3)], [(3, 3), (2, 3), (3, 3)]], {0, 1}, name="in turns"),
    Function("CatBackward", lambda *a: _joined(*a, dim=-1), [[(4, 2), (4, 1)], [(2, 4, 1), (2, 4, 3)]], {0, 1, 2}),
    Function("CatBackward", lambda *a: _joined(*a, before=1), [[(3, 2)], [(2, 2), (1, 2)]], {0, 1}, name="after one"),
    Function("CatBackward", lambda *a: _joined(*a, before=2), [[(2, 2)], [(4, 2), (2, 2)]], {0, 1}, name="after two"),
    Function("CatBackward", lambda *a: _joined(*a, after=2), [[(2, 2)], [(1, 2), (1, 2)]], {0, 1}, name="before two"),
    Function(
        "CatBackward", lambda *a: _joined(*a, before=1, after=1), [[(2, 2)], [(4, 2)], [(2, 2), (2, 2)]], {1},
        name="between two",
    ),
    Function("StackBackward", lambda *a: torch.stack(a), [[(4, 3)] * 2, [(3,)] * 4, [(2, 3)] * 3], {0, 1, 2}),
    Function("StackBackward", lambda *a: torch.stack(a, -1), [[(4, 3)] * 2, [(4,)] * 3], {0, 1, 2}),
    Function("StackBackward", lambda *a: torch.stack(a, 1), [[(4, 3)] * 2], {0, 1, 2}),
    Function("StackBackward", lambda a, b: torch.stack([a, torch.ones_like(a), b]), [[(4, 3)] * 2], {0, 1, 2}),
]  # fmt: skip

LINES = [
    Function("SoftmaxBackward", lambda x: x.softmax(-1), [[(4, 3)], [(2, 4, 3)]], {0, 1}),
    Function("SoftmaxBackward", lambda x: x.softmax(0), [[(4, 3)], [(2, 4, 3)]], {1, 2}),
    Function("SoftmaxBackward", lambda x: x.softmax(-2), [[(2, 4, 3)]], {0, 2}),
    Function("LogSoftmaxBackward", lambda x: x.log_softmax(1), [[(4, 3)], [(2, 4, 3)]], {0, 2}),
    Function("CumsumBackward", lambda x: x.cumsum(1), [[(4, 3)], [(2, 4, 3)]], {0, 2}),
    Function("CumsumBackward", lambda x: x.cumsum(-3), [[(2, 4, 3)]], {1, 2}),
    Function("CumprodBackward", lambda x: x.cumprod(-1), [[(4, 3)]], {0}),
    Function("LogcumsumexpBackward", lambda x: x.logcumsumexp(0), [[(4, 3)]], {1}),
    Function("CummaxBackward", lambda x: x.cummax(1).values, [[(4, 3)], [(2, 4, 3)]], {0, 2}),
    Function("CumminBackward", lambda x: x.cummin(-1).values, [[(4, 3)], [(2, 4, 3)]], {0, 1}),
    Function("GluBackward", lambda x: F.glu(x), [[(4, 6)], [(2, 3, 4)]], {0, 1}),
    Function("GluBackward", lambda x: F.glu(x, 0), [[(4, 6)], [(4, 3, 2)]], {1, 2}),
    Function("FlipBackward", lambda x: x.flip(0), [[(4, 3)], [(4, 2, 3)]], {1, 2}),
    Function("FlipBackward", lambda x: x.flip((-1, 0)), [[(4, 2, 3)]], {1}),
    Function("RollBackward", lambda x: x.roll(1, 0), [[(4, 3)]], {1}),
    Function("RollBackward", lambda x: x.roll((1, 2), (-1, 1)), [[(2, 4, 3)]], {0}),
    Function("RollBackward", lambda x: x.roll(1), [[(4, 3)]], set(), name="all entries rolled"),
    Function("SortBackward", lambda x: x.sort(-1).values, [[(4, 3)], [(2, 4, 3)]], {0, 1}),
    Function("SortBackward", lambda x: x.sort(dim=0, stable=True, descending=True).values, [[(4, 3)]], {1}),
    Function("TopkBackward", lambda x: x.topk(2).values, [[(4, 3)], [(2, 4, 3)]], {0, 1}),
    Function("TopkBackward", lambda x: x.topk(4, 0).values, [[(4, 3)]], {1}),
    Function("GatherBackward", lambda x: x.gather(1, torch.tensor([[2, 0], [1, 1], [0, 0], [2, 1]])), [[(4, 3)]], {0}),
    Function("GatherBackward", lambda x: x.gather(0, torch.tensor([[3, 0, 1], [1, 1, 2]])), [[(4, 3)]], {1}),
    Function(
        "GatherBackward", lambda x: x.gather(1, torch.tensor([[2, 0], [1, 1]])), [[(4, 3)]], set(), name="fewer rows"
    ),
    Function("IndexSelectBackward", lambda x: x.index_select(0, torch.tensor([3, 0, 0, 1])), [[(4, 3)]], {1}),
    Function(
        "IndexSelectBackward", lambda x: x.index_select(-1, torch.tensor([2, 0])), [[(4, 3)], [(2, 4, 3)]], {0, 1}
    ),
    Function("TrilBackward", lambda x: x.tril(), [[(4, 3)], [(2, 4, 3)], [(2, 2, 3, 3)]], {0, 1}),
    Function("TriuBackward", lambda x: x.triu(1), [[(2, 4, 3)]], {0}),
    Function(
        "LinalgCrossBackward", lambda x, y: torch.linalg.cross(x, y), [[(4, 3)] * 2, [(2, 4, 3), (1, 4, 3)]], {0, 1}
    ),
    Function("LinalgCrossBackward", lambda x, y: torch.linalg.cross(x, y, dim=0), [[(3, 4)] * 2], {1}),
]

REDUCED = [
    Function(f"{node}Backward", call, shapes, apart)
    for node, reduce in (
        ("Sum", torch.sum),
        ("Mean", torch.mean),
        ("Amax", torch.amax),
        ("Amin", torch.amin),
        ("Logsumexp", torch.logsumexp),
        ("Var", torch.var),
        ("Std", torch.std),
        ("LinalgVectorNorm", lambda x, dim, keepdim=False: torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)),
        ("LinalgVectorNorm", lambda x, dim, keepdim=False: torch.norm(x, 3, dim, keepdim)),
    )
    for call, shapes, apart in (
        (lambda x, reduce=reduce: reduce(x, dim=-1), [[(4, 3)], [(2, 4, 3)]], {0, 1}),
        (lambda x, reduce=reduce: reduce(x, dim=0), [[(4, 3)], [(2, 4, 3)]], {0, 1}),
        (lambda x, reduce=reduce: reduce(x, dim=1, keepdim=True), [[(4, 3)], [(2, 4, 3)]], {0, 2}),
        (lambda x, reduce=reduce: reduce(x, dim=(0, -1)), [[(2, 4, 3)], [(2, 4, 4, 3)]], {0, 1}),
        (lambda x, reduce=reduce: reduce(x, dim=(-2, 0), keepdim=True), [[(2, 4, 3)]], {2}),
    )
] + [
    Function(f"{node}Backward", call, shapes, apart)
    for node, reduce in (("Max", torch.max), ("Min", torch.min))
    for call, shapes, apart in (
        (lambda x, reduce=reduce: reduce(x, -1).values, [[(4, 3)], [(2, 4, 3)]], {0, 1}),
        (lambda x, reduce=reduce: reduce(x, 0).values, [[(4, 3)], [(2, 4, 3)]], {0, 1}),
        (lambda x, reduce=reduce: reduce(x, 1, True).values, [[(4, 3)], [(2, 4, 3)]], {0, 2}),
        (lambda x, reduce=reduce: reduce(x), [[(4, 3)]], set()),
    )
]


SEGMENTS = [
    Function(
        "SegmentReduceBackward",
        lambda x, reduce=reduce: torch.segment_reduce(x, reduce, lengths=torch.tensor([1, 3]), axis=0),
        [[(4, 3)], [(4, 2, 3)]],
        {1, 2},
        name=f"{reduce} of segments",
    )
    for reduce in ("sum", "mean", "max", "min")
]
WHOLE_REDUCED = [
    Function(f"{node}Backward", call, [[(4, 3)], [(2, 4, 3)]], set(), name=name)
    for node, name, call in (
        ("Sum", "whole sum", torch.sum),
        ("Sum", "sum over no dimensions, which are all", lambda x: x.sum(())),
        ("Sum", "whole sum, kept", lambda x: x.sum((), keepdim=True)),
        ("Mean", "whole mean", torch.mean),
        ("Amax", "whole amax", torch.amax),
        ("Std", "whole standard deviation", torch.std),
        ("Var", "whole variance", torch.var),
        ("LinalgVectorNorm", "whole norm", torch.linalg.vector_norm),
    )
]

PADDED = [
    Function("ConstantPadNdBackward", lambda x: F.pad(x, (1, 2)), [[(4, 3)], [(2, 4, 3)]], {0, 1}),
    Function("ConstantPadNdBackward", lambda x: F.pad(x, (0, 0, 1, 0)), [[(4, 3)], [(2, 4, 3)]], {0, 1, 2}),
    Function("ConstantPadNdBackward", lambda x: F.pad(x, (-1, 1)), [[(4, 3)]], {0}, name="shifted"),
    *[
        Function(
            f"{node}Pad{dims}DBackward",
            lambda x, dims=dims, mode=mode: F.pad(x, (1, 1) * dims, mode),
            [[shape]],
            {0, 1},
        )
        for node, mode in (("Reflection", "reflect"), ("Replication", "replicate"))
        for dims, shape in ((1, (2, 3, 4)), (2, (2, 2, 3, 4)), (3, (2, 2, 2, 3, 2)))
    ],
    Function("ReflectionPad2DBackward", lambda x: F.pad(x, (1, 1, 0, 0), "reflect"), [[(2, 2, 3, 4)]], {0, 1, 2}),
]

_SPACE = {1: (2, 4, 6), 2: (2, 4, 6, 4), 3: (2, 2, 4, 4, 2)}
"""Shapes of images, by the dimensions of space."""

POOLED = [
    *[
        Function(f"{node}{dims}DBackward", call, [[_SPACE[dims]], [_SPACE[dims][1:]]], {0, 1})
        for dims in (1, 2, 3)
        for node, call in (
            ("AvgPool", lambda x, dims=dims: getattr(F, f"avg_pool{dims}d")(x, 2)),
            ("AdaptiveAvgPool", lambda x, dims=dims: getattr(F, f"adaptive_avg_pool{dims}d")(x, 2)),
            ("AdaptiveMaxPool", lambda x, dims=dims: getattr(F, f"adaptive_max_pool{dims}d")(x, 2)),
        )
        if (node, dims) not in (("AvgPool", 1), ("AdaptiveAvgPool", 1), ("AdaptiveMaxPool", 1))  # made of those in 2d
    ],
    Function("AvgPool2DBackward", lambda x: F.avg_pool1d(x, 3, 1, 1), [[(2, 4, 6)]], {0, 1}),
    Function("AvgPool2DBackward", lambda x: F.avg_pool2d(x, 1), [[(2, 4, 3, 3)]], {0, 1}, name="pools of one"),
    Function("AdaptiveAvgPool2DBackward", lambda x: F.adaptive_avg_pool2d(x, 3), [[(2, 4, 5, 5)]], {0, 1}),
    Function("MeanBackward", lambda x: F.adaptive_avg_pool2d(x, 1), [[(2, 4, 5, 5)]], {0, 1}),
    Function("AdaptiveAvgPool2DBackward", lambda x: F.adaptive_avg_pool1d(x, 2), [[(2, 4, 6)]], {0, 1}),
    Function("AdaptiveMaxPool2DBackward", lambda x: F.adaptive_max_pool1d(x, 2), [[(2, 4, 6)]], {0, 1}),
    Function("MaxPool2DWithIndicesBackward", lambda x: F.max_pool1d(x, 2), [[(2, 4, 6)]], {0, 1}),
    Function("MaxPool2DWithIndicesBackward", lambda x: F.max_pool2d(x, 3, 1, 1), [[(2, 4, 4, 4)], [(4, 4, 4)]], {0, 1}),
    Function("MaxPool3DWithIndicesBackward", lambda x: F.max_pool3d(x, 2), [[_SPACE[3]]], {0, 1}),
    Function("UpsampleNearest1DBackward", lambda x: F.interpolate(x, scale_factor=2), [[(2, 4, 3)]], {0, 1}),
    Function("UpsampleNearest2DBackward", lambda x: F.interpolate(x, size=(3, 5)), [[(2, 4, 2, 3)]], {0, 1}),
    Function("UpsampleNearest3DBackward", lambda x: F.interpolate(x, scale_factor=2), [[(2, 2, 2, 2, 2)]], {0, 1}),
    *[
        Function(
            f"UpsampleNearestExact{dims}DBackward",
            lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
            [[(2, 4, *[2] * dims)]],
            {0, 1},
        )
        for dims in (1, 2, 3)
    ],
    Function("UpsampleLinear1DBackward", lambda x: F.interpolate(x, size=5, mode="linear"), [[(2, 4, 3)]], {0, 1}),
    Function(
        "UpsampleBilinear2DBackward", lambda x: F.interpolate(x, size=5, mode="bilinear"), [[(2, 4, 3, 2)]], {0, 1}
    ),
    Function("UpsampleBicubic2DBackward", lambda x: F.interpolate(x, size=4, mode="bicubic"), [[(2, 4, 4, 4)]], {0, 1}),
    Function(
        "UpsampleTrilinear3DBackward", lambda x: F.interpolate(x, size=3, mode="trilinear"), [[(2, 2, 2, 2, 2)]], {0, 1}
    ),
    Function("PixelShuffleBackward", lambda x: F.pixel_shuffle(x, 2), [[(2, 8, 2, 3)], [(3, 2, 4, 2, 2)]], {0, 1}),
    Function("PixelUnshuffleBackward", lambda x: F.pixel_unshuffle(x, 2), [[(2, 2, 4, 4)]], {0}),
    Function("Im2ColBackward", lambda x: F.unfold(x, 2), [[(2, 2, 3, 3)]], {0}),
    Function("Im2ColBackward", lambda x: F.unfold(x, 2), [[(4, 3, 3)]], set(), name="patches of one image"),
    Function("Col2ImBackward", lambda x: F.fold(x, (3, 3), 2), [[(2, 8, 4)]], {0}),
    Function("Col2ImBackward", lambda x: F.fold(x, (3, 3), 2), [[(8, 4)]], set(), name="one image of patches"),
]

PRODUCTS = [
    Function("MmBackward", torch.mm, [[(4, 3), (3, 2)], [(4, 4), (4, 4)]], {0, 1}),
    Function("MmBackward", torch.matmul, [[(2, 4, 3), (3, 2)]], {0, 1}, name="tokens by a matrix"),
    Function(
        "AddmmBackward",
        torch.addmm,
        [[(2,), (4, 3), (3, 2)], [(4, 2), (4, 3), (3, 2)], [(4, 1), (4, 3), (3, 2)]],
        {0, 1},
    ),
    Function("AddmmBackward", lambda b, x, w: torch.addmm(b, x, w, alpha=2, beta=3), [[(2,), (4, 3), (3, 2)]], {0, 1}),
    Function("AddmmBackward", F.linear, [[(4, 3), (2, 3), (2,)], [(2, 4, 3), (2, 3), (2,)]], {0, 1}, name="linear"),
    Function("BmmBackward", torch.bmm, [[(2, 4, 3), (2, 3, 2)], [(4, 4, 4), (4, 4, 4)]], {0, 1, 2}),
    Function(
        "BmmBackward", torch.matmul, [[(2, 2, 4, 3), (2, 2, 3, 2)], [(4, 3), (2, 3, 2)]], {0, 1, 2}, name="matmul"
    ),
    Function("BmmBackward", lambda x, y: torch.einsum("bij,bkj->bik", x, y), [[(2, 4, 3), (2, 2, 3)]], {0, 1, 2}),
    Function(
        "BaddbmmBackward", torch.baddbmm, [[(2, 4, 2), (2, 4, 3), (2, 3, 2)], [(4, 1), (2, 4, 3), (2, 3, 2)]], {0, 1, 2}
    ),
    Function("MvBackward", torch.mv, [[(4, 3), (3,)]], {0}),
    Function("MvBackward", torch.matmul, [[(4, 3), (3,)], [(2, 4, 3), (3,)]], {0}, name="vectors"),
]


def _attention(kind: SDPBackend, causal: bool = False, grouped: bool = False) -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        with sdpa_kernel([kind]):
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)

    return attention


_HEADS: list[list[tuple[int, ...]]] = [[(2, 4, 3, 8)] * 3, [(4, 2, 2, 8), (4, 2, 5, 8), (4, 2, 5, 8)]]
_FLASH = "ScaledDotProductFlashAttentionForCpuBackward"

ATTENTION = [
    Function(_FLASH, _attention(SDPBackend.FLASH_ATTENTION), _HEADS, {0, 1}),
    Function(_FLASH, _attention(SDPBackend.FLASH_ATTENTION, causal=True), _HEADS[:1], {0, 1}, name="causal attention"),
    Function(
        _FLASH,
        _attention(SDPBackend.FLASH_ATTENTION, grouped=True),
        [[(2, 4, 3, 8), (2, 2, 3, 8), (2, 2, 3, 8)]],
        {0, 1},
        name="grouped queries",
    ),
    Function("SafeSoftmaxBackward", _attention(SDPBackend.MATH), _HEADS, {0, 1, 2}),
    Function(
        "BmmBackward", _attention(SDPBackend.MATH), [[(2, 4, 3, 8)] * 3 + [(3, 3)]], {0, 1, 2}, name="trained mask"
    ),
]

CONVOLUTIONS = [
    Function("ConvolutionBackward", call, shapes, {0}, positive=False, name=name)
    for name, call, shapes in (
        ("conv1d", F.conv1d, [[(4, 2, 5), (3, 2, 3), (3,)]]),
        ("conv2d", F.conv2d, [[(4, 2, 5, 4), (3, 2, 3, 2), (3,)], [(4, 4, 4, 4), (4, 4, 1, 1)]]),
        ("conv3d", F.conv3d, [[(2, 2, 3, 3, 3), (3, 2, 2, 2, 2), (3,)]]),
        ("strided, padded, dilated", lambda x, w: F.conv2d(x, w, None, 2, 2, 2), [[(4, 2, 5, 5), (3, 2, 3, 3)]]),
        ("grouped", lambda x, w, b: F.conv2d(x, w, b, groups=2), [[(4, 4, 3, 3), (6, 2, 2, 2), (6,)]]),
        ("depthwise", lambda x, w: F.conv1d(x, w, groups=4), [[(4, 4, 5), (4, 1, 3)]]),
        ("padding same", lambda x, w: F.conv2d(x, w, padding="same"), [[(4, 2, 4, 4), (2, 2, 3, 3)]]),
        ("conv_transpose1d", F.conv_transpose1d, [[(4, 2, 3), (2, 3, 2), (3,)]]),
        ("conv_transpose2d", lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1), [[(4, 2, 3, 3), (2, 3, 3, 3)]]),
        ("grouped conv_transpose2d", lambda x, w: F.conv_transpose2d(x, w, groups=2), [[(2, 4, 3, 3), (4, 3, 2, 2)]]),
        ("conv_transpose3d", F.conv_transpose3d, [[(2, 2, 2, 2, 2), (2, 3, 2, 2, 2), (3,)]]),
        ("frozen kernel", lambda x: F.conv2d(x, torch.ones(3, 2, 2, 2).double()), [[(4, 2, 3, 3)]]),
    )
] + [
    Function("ConvolutionBackward", lambda x, w: F.conv2d(x, w), [[(2, 4, 4), (3, 2, 2, 2)]], set(), name="one image"),
]


def _batch_norm(training: bool) -> Callable[..., Tensor]:
    def normalised(x: Tensor, w: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        n = x.shape[1]
        mean, variance = torch.linspace(-1, 1, n).double(), torch.linspace(0.5, 2, n).double()
        return F.batch_norm(x, mean, variance, w, b, training)

    return normalised


NORMS = [
    Function("NativeLayerNormBackward", lambda x, w, b: F.layer_norm(x, (3,), w, b), [[(4, 3), (3,), (3,)]], {0}),
    Function(
        "NativeLayerNormBackward",
        lambda x, w, b: F.layer_norm(x, (4, 3), w, b),
        [[(2, 2, 4, 3), (4, 3), (4, 3)]],
        {0, 1},
    ),
    Function(
        "NativeLayerNormBackward", lambda x: F.layer_norm(x, (3,)), [[(2, 4, 3)]], {0, 1}, name="plain layer norm"
    ),
    Function(
        "NativeGroupNormBackward",
        lambda x, w, b: F.group_norm(x, 2, w, b),
        [[(2, 4, 3), (4,), (4,)], [(3, 4, 2, 2), (4,), (4,)]],
        {0},
    ),
    Function(
        "NativeBatchNormBackward",
        _batch_norm(False),
        [[(4, 3), (3,), (3,)], [(2, 4, 3, 2), (4,), (4,)], [(2, 4, 3)]],
        {0, 1},
    ),
    Function(
        "NativeBatchNormBackward",
        _batch_norm(True),
        [[(4, 3), (3,), (3,)], [(2, 4, 3, 2), (4,), (4,)], [(2, 4, 3)]],
        {0, 1},
        name="batch norm in training",
    ),
    Function(
        "NativeBatchNormBackward", _batch_norm(True), [[(1, 4, 3), (4,), (4,)]], {1}, name="batch norm of one image"
    ),
    Function(
        "NativeBatchNormBackward",
        lambda x, w, b: F.instance_norm(x, None, None, w, b),
        [[(2, 4, 3), (4,), (4,)], [(2, 2, 3, 3), (2,), (2,)]],
        {1},
        name="instance norm",
    ),
    Function(
        "RsqrtBackward",
        lambda x, w: F.rms_norm(x, (3,), w),
        [[(4, 3), (3,)], [(2, 4, 3), (3,)]],
        {0, 1},
        name="rms norm",
    ),
    Function("LinalgVectorNormBackward", lambda x: F.normalize(x, dim=1), [[(4, 3)]], {0}, name="normalize"),
]

TABLES = [
    Function("EmbeddingBackward", lambda w, i=i: F.embedding(i, w), [[(5, 3)]], set(), name=name)
    for name, i in (("embedding", torch.tensor([1, 3, 0, 1])), ("tokens", torch.tensor([[1, 3], [0, 1]])))
]

FUNCTIONS = [
    *UNARY, *ACTIVATIONS, *BINARY, *ELEMENTWISE, *DERIVATIVES, *SHAPES, *JOINED, *LINES, *SEGMENTS, *REDUCED,
    *WHOLE_REDUCED, *PADDED, *POOLED, *PRODUCTS, *ATTENTION, *CONVOLUTIONS, *NORMS, *TABLES,
]  # fmt: skip
EACH = [pytest.param(one, id=f"{number}-{one}") for number, one in enumerate(FUNCTIONS)]


@pytest.mark.parametrize("function", EACH)
def test_samples_lie_apart_where_the_rule_says_so(function: Function) -> None:
    apart, seen = set(), set()
    for shapes in function.shapes:
        for call in calls_of(function, shapes):
            seen.add(_base(call.name))
            with torch.no_grad():
                for axes in combinations(call):
                    if assert_apart(call, axes) and _base(call.name) == function.node:
                        apart |= {axis.dim for axis in axes if axis is not None and axis.inner == 1}
    assert function.node in seen
    assert apart == function.apart


ELSEWHERE = {
    "NativeDropoutBackward": "made of other functions",
    **dict.fromkeys(
        [
            *(f"ScaledDotProduct{kind}Attention" for kind in ("Efficient", "Flash", "Cudnn")),
            "CudnnBatchNorm",
            "FusedRmsNorm",
        ],
        "on an accelerator",
    ),
}
"""Functions with a rule that no function of torch has in its graph on the CPU."""


def test_every_rule_is_tried() -> None:
    known = {_base(name) for name in RULES}
    seen = {
        _base(call.name) for function in FUNCTIONS for shapes in function.shapes for call in calls_of(function, shapes)
    }
    assert known - seen == {f"{name}Backward" for name in ELSEWHERE}
