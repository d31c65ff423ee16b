"""What the project asks of its ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """A bound on a ratio.

    Attributes:
        side: whether the ratio must be at least or at most the bound.
        bound: the bound.
    """

    side: Literal["at least", "at most"]
    bound: float

    def met(self, value: float) -> bool:
        """Whether a ratio keeps it; not a number never does."""
        return value >= self.bound if self.side == "at least" else value <= self.bound

    def __str__(self) -> str:
        """For a table, such as ``≥ 80``."""
        return f"{'≥' if self.side == 'at least' else '≤'} {self.bound:g}"


LARGER = ("mlp", "resnet", "transformer", "lora")
"""Networks on which a step must cost no more than on the reference network, measured in steps of Adam."""

TARGETS: dict[str, Target] = {
    "capture_exact_speedup_vs_jacrev": Target("at least", 80),
    "capture_exact_speedup_vs_backpack": Target("at least", 30),
    "capture_mc_vs_plain_step": Target("at most", 2),
    "pinn_rows_vs_vmap": Target("at most", 2),
    "upload_shrink_f32": Target("at least", 40),
    "upload_shrink_16bit": Target("at least", 80),
    "solve_speedup_vs_thermox_512": Target("at least", 20),
    "solve_speedup_vs_thermox_1024": Target("at least", 50),
    "solve_speedup_vs_euler_maruyama": Target("at least", 100),
    "solve_speedup_vs_cg": Target("at least", 1),
    "step_exact_vs_adam": Target("at most", 12),
    "step_mc_vs_adam": Target("at most", 3),
    **{f"step_exact_vs_adam_{network}": Target("at most", 12) for network in LARGER},
    **{f"step_mc_vs_adam_{network}": Target("at most", 3) for network in LARGER},
    "step_grpc_vs_inprocess": Target("at most", 1.1),
    "scale_exponent_n": Target("at most", 1.05),
    "longest_stall_vs_50ms": Target("at most", 1),
    "info_median_vs_250ms": Target("at most", 1),
    "peak_vs_bound": Target("at most", 1),
    "overlap_vs_longer": Target("at most", 1.15),
    "read_lateness_p99_ms_loaded": Target("at most", 20),
    "growth_host": Target("at most", 1.05),
    "growth_daemon": Target("at most", 1.05),
    "descriptors_left": Target("at most", 1),
    "regions_left": Target("at most", 0),
    "uploads_lost": Target("at most", 0),
}
"""By ratio; most have none."""
