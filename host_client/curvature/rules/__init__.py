"""What is known of torch's functions of trained parameters, one idea a file."""

from host_client.curvature.rules import broadcast, convolution, embedding, linear, norms
from host_client.curvature.rules.base import Operation, Rules, ToRows

RULES: Rules = {**linear.RULES, **convolution.RULES, **embedding.RULES, **norms.RULES, **broadcast.RULES}
"""Rules by the function that torch dispatches."""

__all__ = ["RULES", "Operation", "ToRows"]
