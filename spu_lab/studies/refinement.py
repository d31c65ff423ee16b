"""Solutions from an imprecise device, refined on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from host_client.blocking import Session
from host_client.solvers import Info
from spu_link.operators import Kept, Operator


@dataclass(frozen=True)
class RefinedReadings:
    """Iterative refinement (Wilkinson, Rounding Errors in Algebraic Processes, 1963), as a `Solver` on a device.

    A reading of (F + λI)⁻¹ b leaves the residual r = b − (F + λI) x, which the host computes in float64 with F in
    factors. The device, which keeps the operator, is asked for (F + λI)⁻¹ r, and x is corrected by the reading, as long
    as that lowers the norm of the residual. Each drive is scaled so that its largest value is 1: the device's noise and
    the steps of its converters are then as small, relative to a correction, as they were relative to x.

    Attributes:
        session: the device.
        analog_time: t of each reading, in τ.
        noise: κ₀ of the device, for drives whose largest value is 1.
        refinements: max number of corrections.
    """

    session: Session
    analog_time: float
    noise: float
    refinements: int

    def __call__(self, operator: Operator, drive: Tensor, damping: float) -> tuple[Tensor, Info]:
        """Solve (F + λI) x = b.

        Returns:
            x, and the number of ``readings`` and the relative norm of the ``residual``.
        """
        x, residual, asked, readings = torch.zeros_like(drive), drive, operator, 0
        while readings <= self.refinements and bool(residual.any()):
            scale = residual.abs().max()
            reading = self.session.solve(
                asked,
                residual / scale,
                damping=damping,
                noise=self.noise,
                analog_time=self.analog_time,
                start="drive",
            )
            readings += 1
            corrected = x + scale * reading.value
            left = drive - operator.curvature(corrected) - damping * corrected
            if readings > 1 and not left.norm() < residual.norm():
                break
            x, residual, asked = corrected, left, Kept(reading.sequence, operator.parameters)
        return x, {"readings": readings, "residual": float(residual.norm() / drive.norm()) if readings else 0.0}
