"""The emulator's state, taken out of it and put back."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from spu_link.errors import mismatch
from spu_link.packing import validated
from spu_link.values import check_finite
from spu_server.drivers.base import Saved
from spu_server.dynamics import Transition, transition_of
from spu_server.dynamics.transition import Progress

GENERATOR, STATE, IMAGE = "generator", "state", "image"
"""Names of the tensors: of the random numbers' generator, of the cells, and of what the factor makes of them."""


class Facts(BaseModel):
    """The parts of a snapshot that are no tensors.

    Attributes:
        compute: kind of device that draws the noise; another one draws other numbers.
        time: device time of the last event, in τ.
        at_drive: whether the cells are still where a start at the drive put them.
        steps: Lanczos steps taken under the operator.
        decomposed: whether its eigenvectors were there.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    compute: str
    time: float = Field(allow_inf_nan=False)
    at_drive: bool
    steps: int = Field(ge=0, lt=1 << 53)
    decomposed: bool


def tensors_of(
    generator: torch.Generator, state: Tensor | None, progress: Progress, at_drive: bool
) -> dict[str, Tensor]:
    """The state's tensors, by name; those of the device itself, not copies, where it lives on the CPU."""
    tensors = {GENERATOR: generator.get_state()}
    if state is not None and not at_drive:
        tensors[STATE] = state.cpu()
    if progress.image is not None:
        tensors[IMAGE] = progress.image
    return tensors


class Snapshot:
    """A saved state, looked at and ready to go on from.

    Args:
        saved: what `Emulator.save` gave, as it came back.
        compute: where the emulator computes.

    Attributes:
        saved: the same.
        facts: what is not a tensor.
        transition: the motion under its program; None without one.
        state: where the cells are; None while they are discharged.
        generator: where the random numbers are.

    Raises:
        InvalidProgram: naming what cannot be.
    """

    def __init__(self, saved: Saved, compute: torch.device) -> None:
        self.saved = saved
        self.facts = facts = validated(Facts, dict(saved.facts))
        tensors = dict(saved.tensors)
        if facts.compute != compute.type:
            raise mismatch("state.compute", facts.compute, f"{compute.type}, where this emulator draws its noise")
        if facts.time > saved.at:
            raise mismatch("state.time", facts.time, f"at most {saved.at}, the time of saving")
        self.generator = tensors.pop(GENERATOR, torch.empty(0))
        try:
            torch.Generator(compute).set_state(self.generator)
        except (RuntimeError, TypeError) as error:
            raise mismatch("state.generator", f"not one ({error})", "the state of a generator") from None
        state, image = tensors.pop(STATE, None), tensors.pop(IMAGE, None)
        if tensors:
            raise mismatch("state", f"with {sorted(tensors)}", f"{GENERATOR}, {STATE} and {IMAGE} at most")
        self.transition: Transition | None = None
        self.state: Tensor | None = None
        if saved.program is None:
            if state is not None or image is not None or facts.at_drive:
                raise mismatch("state", "of cells without a program", "a program with it")
            return
        self.transition = transition_of(saved.program, compute)
        cells = saved.program.cells
        if facts.at_drive:
            self.state = self.transition.drive
        elif state is not None:
            _check("state.state", state, cells)
            self.state = state.to(self.transition.drive.device)
        if image is not None:
            _check("state.image", image, saved.program.operator.shape[0])
        try:
            self.transition.resume(self.state, Progress(facts.steps, facts.decomposed, image))
        except ValueError as error:
            raise mismatch("state.image", str(error), "what the factor makes of the state") from None


def _check(field: str, vector: Tensor, length: int) -> None:
    if vector.dtype != torch.float64 or vector.shape != (length,):
        raise mismatch(field, f"{vector.dtype} of shape {tuple(vector.shape)}", f"float64 of shape ({length},)")
    check_finite(field, vector)
