"""Everything that determines a training run, checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveFloat, model_validator

from host_client.names import Kind, OnLoss, OptimizerName
from spu_link.names import Precision, StartPolicy

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


MAX_COUNT = 10**9
"""Max number of epochs, steps or samples."""

MAX_TIME = 1e12
"""Max device time, in τ: 12 days for a τ of 1 µs."""


def freshness_of(given: Any) -> Any:
    """Return a freshness as `TNGD` takes it, from how it is typed.

    Raises:
        ValueError: for a text that is none.
    """
    if not isinstance(given, str) or given in ("program", "newest"):
        return given
    if not given.isdecimal():
        raise ValueError(f"{given!r} is neither program, newest nor a number of programs")
    return int(given)


class Settings(BaseModel):
    """Settings of one run; times in τ. Their descriptions are the help of ``tngd train``.

    Raises:
        pydantic.ValidationError: naming each setting that is not what it must be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    optimizer: OptimizerName = Field(
        default="tngd",
        description="tngd: natural gradient from the device. ngd, ngd-cg, ngd-woodbury: the same, solved digitally, by "
        "the matrix in full (small networks), conjugate gradients, or in sample space. kfac: Kronecker factors.",
    )
    epochs: int = Field(default=1, ge=1, le=MAX_COUNT, description="Passes over the training images.")
    steps: int | None = Field(
        default=None,
        ge=1,
        le=MAX_COUNT,
        description="Iterations, instead of --epochs.",
        json_schema_extra={"show_default": "as --epochs says"},
    )
    batch_size: int = Field(default=64, ge=1, le=MAX_COUNT, description="Images in a batch.")
    lr: PositiveFloat = Field(
        default_factory=lambda given: LEARNING_RATES[given["optimizer"]],
        description="Learning rate η, dimensionless.",
        json_schema_extra={"show_default": "0.001 adam, 0.1 sgd, 0.01 all others"},
    )
    damping: float = Field(
        default=0.01,
        ge=0,
        description="Damping λ, in units of the curvature F: the device solves (F + λI) x = gradient.",
    )
    analog_time: float = Field(
        default=50.0,
        ge=0,
        le=MAX_TIME,
        description="Time t the device evolves under an upload before it is read, in τ.",
    )
    delay: float = Field(
        default=0.0, ge=0, le=MAX_TIME, description="Time t_d from a reading to the next upload taking effect, in τ."
    )
    noise: float = Field(
        default=0.0, ge=0, description="Noise κ₀ of the device: the stationary covariance is κ₀ (F + λI)⁻¹."
    )
    start: StartPolicy = Field(
        default="keep",
        description="Cells at the instant an upload takes effect. keep: as they are. drive: at the new gradient.",
    )
    precision: Precision = Field(
        default="float32",
        description="How the curvature travels to the device. 16 bits halve the upload; int16 is the most accurate.",
    )
    freshness: Annotated[Literal["program", "newest"] | NonNegativeInt, BeforeValidator(freshness_of)] = Field(
        default="program",
        description="Which readings a step may use. program: of its own program, so it waits. newest: what there is. "
        "K: at most K programs old; with 1 the device works while the next gradient is computed.",
        json_schema_extra={"metavar": "program|newest|K"},
    )
    on_loss: OnLoss = Field(
        default="raise",
        description="Policy of a step without the device. raise: end. wait: until it is back, or --timeout is over. "
        "digital: solve here. gradient: update with the gradient. All but raise reconnect as soon as can be.",
    )
    timeout: PositiveFloat = Field(
        default=60.0,
        le=1e6,
        description="Max wait of a step for a lost device, or for a reading beyond its device time, s.",
        json_schema_extra={"min": 0.001},
    )
    momentum: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Momentum β of the update, dimensionless; not with adam.",
        json_schema_extra={"max": 0.999},
    )
    curvature: Kind = Field(
        default="exact",
        description="F. exact: generalised Gauss-Newton. mc: Fisher from one drawn label an image, d times fewer rows. "
        "empirical: from the true labels.",
    )
    curvature_every: int = Field(
        default=1,
        ge=1,
        le=MAX_COUNT,
        description="Iterations from one curvature to the next; those between use the last one.",
    )
    trust_region: float | None = Field(
        default=None,
        gt=0,
        description="Bound δ on a step, momentum included, as a divergence of the predictions.",
        json_schema_extra={"show_default": "no bound"},
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seed of network, batches and, with inproc:, the device's noise."
    )

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
        if self.trust_region is None:
            return self
        from host_client.optimizers.named import hyperparameters_of

        if "trust_region" not in hyperparameters_of(self.optimizer):
            raise ValueError(f"trust_region is {self.trust_region}; {self.optimizer} has none, it knows no curvature")
        return self

    def hyperparameters(self) -> dict[str, Any]:
        """Those of the settings that are hyperparameters of this optimizer, by name."""
        from host_client.optimizers.named import hyperparameters_of

        known = hyperparameters_of(self.optimizer)
        return {name: value for name, value in self.model_dump().items() if name in known}

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
            parts += [f"freshness {self.freshness}"] if self.freshness != "program" else []
        return ", ".join(parts)
