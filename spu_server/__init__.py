"""The SPU daemon: clock, device, dynamics, drivers and services."""
