"""The exact dynamics, as pure functions of operators, states and durations: no gRPC, no asyncio, no clock."""

from spu_server.dynamics.load import transition_of
from spu_server.dynamics.transition import NoiseSource, Step, Transition

__all__ = ["NoiseSource", "Step", "Transition", "transition_of"]
