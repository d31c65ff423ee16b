"""The exact dynamics, as pure functions of operators, states and durations: no gRPC, no asyncio, no clock."""
