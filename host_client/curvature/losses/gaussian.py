"""Gaussian negative log-likelihood, in the mean and in the variance."""

from __future__ import annotations

import torch
from torch import Tensor

from host_client.curvature.losses.call import random_signs
from host_client.curvature.losses.elementwise import ElementwiseLoss


class GaussianNLL(ElementwiseLoss):
    """`nn.GaussianNLLLoss`, ½ (log v + (z − t)² / v): each pair of mean z and variance v is an element.

    Its Hessian in the mean is 1/v, and with a variance that has no graph that is all. Otherwise the Hessian depends on
    the target and is indefinite, so the Fisher information takes its place, diag(1/v, 1/(2 v²)): of a normal
    distribution, https://en.wikipedia.org/wiki/Normal_distribution#Fisher_information. Variances are bounded from below
    by ``eps``, as torch does.
    """

    curved = frozenset({"input", "target", "var"})

    @property
    def _rank(self) -> int:
        return len(self._parts())

    def _exact(self) -> tuple[Tensor, ...]:
        parts = self._parts()
        zero = torch.zeros_like(self.wide["input"])
        columns = {
            name: torch.stack([part if owner == name else zero for owner, part in parts.items()])
            for name in ("input", "var")
        }
        return tuple(columns[name] if name != "target" else -columns["input"] for name in self.names)

    def _monte_carlo(self, draws: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        scores = {
            name: random_signs((draws, *part.shape), part, generator) * (part / draws**0.5)
            for name, part in self._parts().items()
        }
        return tuple(scores[name] if name != "target" else -scores["input"] for name in self.names)

    def _parts(self) -> dict[str, Tensor]:
        """Return the roots of the Fisher information in the mean and in the variance, as far as they have graphs."""
        var = torch.as_tensor(self.wide["var"], dtype=self.wide["input"].dtype, device=self.z.device)
        if var.dim() and var.shape == self.z.shape[:-1]:
            var = var[..., None]
        var = var.clamp_min(self.arguments["eps"]).expand(self.z.shape)
        parts = {}
        if "input" in self.names or "target" in self.names:
            parts["input"] = (var * self.divisor()).rsqrt()
        if "var" in self.names:
            parts["var"] = 1 / (var * (2 * self.divisor()) ** 0.5)
        return parts
