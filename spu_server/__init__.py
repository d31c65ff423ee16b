"""The SPU daemon: clock, device, dynamics, drivers and services."""

import spu_link  # noqa: F401 - comes before gRPC, whose own log it turns off
