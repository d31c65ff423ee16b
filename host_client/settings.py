"""Everything that determines a training run, checked."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from host_client.curvature.losses import Kind
from host_client.loop import NoOlderThan, OnLoss
from host_client.optimizers.named import OptimizerName, hyperparameters_of
from spu_link.precision import Precision

LEARNING_RATES: dict[OptimizerName, float] = {
    "tngd": 0.01,
    "ngd": 0.01,
    "ngd-cg": 0.01,
    "ngd-woodbury": 0.01,
    "kfac": 0.01,
    "adam": 0.001,
    "sgd": 0.1,
}
"""Learning rates where none is given: the paper's for TNGD and Adam, TNGD's for the digital natural gradient."""


LARGEST = 10**9
"""Of what is counted."""

LONGEST = 1e12
"""Device time in τ: 12 days for a τ of 1 µs."""


class Settings(BaseModel):
    """Settings of one run; times in τ.

    Raises:
        pydantic.ValidationError: naming each setting that is not what it must be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    optimizer: OptimizerName = Field(default="tngd", description="how the network is trained")
    epochs: PositiveInt = Field(
        default=1, le=LARGEST, description="passes over the training set; without effect where steps is given"
    )
    steps: PositiveInt | None = Field(
        default=None, le=LARGEST, description="iterations; None: as many as the epochs need"
    )
    batch_size: PositiveInt = Field(default=64, le=LARGEST, description="examples in a batch, b")
    lr: PositiveFloat = Field(
        default_factory=lambda given: LEARNING_RATES[given["optimizer"]],
        description="learning rate η; by default the optimizer's own, see LEARNING_RATES",
    )
    damping: NonNegativeFloat = Field(default=0.01, description="damping λ of the curvature")
    analog_time: NonNegativeFloat = Field(
        default=50.0, le=LONGEST, description="time t from an upload taking effect to the reading, in τ"
    )
    delay: NonNegativeFloat = Field(
        default=0.0, le=LONGEST, description="min time t_d from a reading to the next upload taking effect, in τ"
    )
    noise: NonNegativeFloat = Field(default=0.0, description="noise κ₀ of the device")
    start: Literal["keep", "drive"] = Field(default="keep", description="state at the instant an upload takes effect")
    precision: Precision = Field(default="float32", description="how the curvature travels to the device")
    freshness: Literal["this program", "newest"] | NonNegativeInt = Field(
        default="this program",
        description="readings a step may use: of its own program, the newest, or at most so many programs old",
    )
    on_loss: OnLoss = Field(default="raise", description="what a step does when the device is lost")
    patience: PositiveFloat = Field(
        default=60.0,
        le=1e6,
        description="longest that a step waits for a lost device, or for a reading beyond its device time, in seconds",
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum β of the update")
    curvature: Kind = Field(default="exact", description="which curvature is captured")
    curvature_every: PositiveInt = Field(
        default=1, le=LARGEST, description="iterations from one curvature to the next, k"
    )
    trust_region: PositiveFloat | None = Field(
        default=None, description="bound δ on a step, momentum included, as a divergence; None for no bound"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the network's start and of the batches")

    @model_validator(mode="after")
    def _momentum_has_a_meaning(self) -> Self:
        if self.momentum and self.optimizer == "adam":
            raise ValueError(f"momentum is {self.momentum}; adam has its own, leave it at 0")
        return self

    @model_validator(mode="after")
    def _damping_makes_a_digital_solve_possible(self) -> Self:
        solved = self.optimizer in ("ngd", "ngd-woodbury", "kfac") or (
            self.optimizer == "tngd" and self.on_loss == "digital"
        )
        if solved and self.damping == 0.0:
            raise ValueError(f"damping is {self.damping:g}; a digital solve needs more than 0, such as 0.01")
        return self

    @model_validator(mode="after")
    def _trust_region_has_a_meaning(self) -> Self:
        if self.trust_region and "trust_region" not in hyperparameters_of(self.optimizer):
            raise ValueError(f"trust_region is {self.trust_region}; {self.optimizer} has none, it knows no curvature")
        return self

    def hyperparameters(self) -> dict[str, Any]:
        """Those of the settings that are hyperparameters of this optimizer, by name."""
        known = hyperparameters_of(self.optimizer)
        values = self.model_dump()
        if isinstance(self.freshness, int):
            values["freshness"] = NoOlderThan(programs=self.freshness)
        return {name: value for name, value in values.items() if name in known}

    def total_steps(self, batches_per_epoch: int) -> int:
        """Iterations of the whole run."""
        return self.steps if self.steps is not None else self.epochs * batches_per_epoch

    def describe(self) -> str:
        """The settings that matter for this optimizer, on one line."""
        parts = [f"η = {self.lr:g}"]
        if self.momentum:
            parts.append(f"β = {self.momentum:g}")
        if self.optimizer not in ("adam", "sgd"):
            parts.append(f"λ = {self.damping:g}")
            parts += [f"{self.curvature} curvature"] if self.curvature != "exact" else []
            parts += [f"k = {self.curvature_every}"] if self.curvature_every > 1 else []
            parts += [f"δ = {self.trust_region:g}"] if self.trust_region else []
        if self.optimizer == "tngd":
            parts += [f"t = {self.analog_time:g} τ", f"t_d ≥ {self.delay:g} τ"]
            parts += [f"κ₀ = {self.noise:g}"] if self.noise else []
            parts += [self.precision] if self.precision != "float32" else []
            parts += [f"freshness {self.freshness}"] if self.freshness != "this program" else []
        return ", ".join(parts)
