"""Functions that work on each entry by itself, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

from host_client.curvature.axis import Axis
from host_client.curvature.graph import Call
from host_client.curvature.rules.base import Axes, Rule, with_one

NAMES = """
    Abs Acos Acosh Add Addcdiv Addcmul Alias Angle Asin Asinh Atan Atan2 Atanh Ceil Celu Clamp ClampMax ClampMin
    Clone Copysign Cos Cosh Deg2Rad Digamma Div Elu EluBackward Erf Erfc Erfinv Exp Exp2 Expm1 Fill Floor Fmax Fmin
    Fmod Frac Gelu GeluBackward Hardshrink HardshrinkBackward Hardsigmoid Hardswish HardswishBackward Hardtanh
    HardtanhBackward Hypot I0 LeakyRelu LeakyReluBackward Lerp Lgamma Log Log10 Log1P Log2 LogSigmoid
    LogSigmoidBackward Logaddexp Logaddexp2 Logit MaskedFill Maximum Minimum Mish Mul NanToNum NativeDropout
    NativeDropoutBackward Neg Polygamma Pow PreluKernel Rad2Deg Reciprocal Relu Remainder Round RreluWithNoise Rsqrt
    Rsub Sgn Sigmoid SigmoidBackward Sign Silu Sin Sinc Sinh Softplus SoftplusBackward Softshrink SoftshrinkBackward
    Sqrt Sub Tan Tanh TanhBackward Threshold ThresholdBackward ToCopy Trunc Where Xlogy
""".split()  # noqa: SIM905 - as a literal it would take a line a name
"""Functions of torch; the ones that end in Backward belong to derivatives within the loss."""


def broadcast(call: Call, axis: Axis, edge: int) -> Axis | None:
    """Return the axis of an argument that is broadcast to the first output."""
    shape, output = call.argument(edge), call.outputs[0]
    dim = axis.dim - len(output) + len(shape)
    return axis.at(dim) if dim >= 0 and shape[dim] == output[axis.dim] else None


class Elementwise(Rule):
    """A function of entries at the same place of its arguments, after broadcasting."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in any dimension, counted from the last, unless the argument is broadcast along it."""
        axis = with_one(axes)
        if axis is None:
            return None
        return [None if place is None else broadcast(call, axis, edge) for edge, place in enumerate(call.edges)]


class Identity(Rule):
    """A function that returns its arguments, such as that of a module with a backward hook."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in any dimension, from each output to the argument that it is."""
        return axes if len(axes) == len(call.edges) else None


def numbered(names: Sequence[str], rule: Rule, overloads: int = 3) -> dict[str, Rule]:
    """Return the rule for the nodes of functions, whose overloads are numbered."""
    return {f"{name}Backward{number}": rule for name in names for number in range(overloads)}
