"""The exact dynamics, as pure functions of operators, states and durations: no gRPC, no asyncio, no clock."""

from spu_server.dynamics.load import motion_of, transition_of
from spu_server.dynamics.transition import Motion, NoiseSource, Step, Transition

__all__ = ["Motion", "NoiseSource", "Step", "Transition", "motion_of", "transition_of"]
