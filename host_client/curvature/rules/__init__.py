"""Rules of torch's functions, by the names of their nodes in the autograd graph.

A function without a rule, or an argument that a rule says nothing of, is differentiated sample by sample. Rules make
a capture cheap, and are verified by `Capture(check=…)`; without them F would be the same.
"""

from host_client.curvature.rules import affine, convolution, elementwise, embedding, products, shapes
from host_client.curvature.rules.base import Operation, Rule, ToRows
from host_client.curvature.rules.elementwise import Elementwise, Identity, numbered

RULES: dict[str, Rule] = {
    **numbered(elementwise.NAMES, Elementwise(), overloads=6),
    "BackwardHookFunctionBackward": Identity(),
    **shapes.RULES,
    **affine.RULES,
    **products.RULES,
    **convolution.RULES,
    **embedding.RULES,
}
"""Rules by the name of the node."""

UNKNOWN = Rule()
"""The rule for a function of which nothing is known."""

__all__ = ["RULES", "UNKNOWN", "Operation", "Rule", "ToRows"]
