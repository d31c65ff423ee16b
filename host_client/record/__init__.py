"""The record of a run: what happened when, on the host, on the link and on the device."""

from host_client.record.delays import DelayMeter, measure_delays
from host_client.record.events import (
    ClockAgreed,
    DeviceBack,
    DeviceLost,
    Differentiated,
    Event,
    Outcome,
    Read,
    Source,
    Updated,
    Uploaded,
)
from host_client.record.reader import Record, UnreadableRecord, load
from host_client.record.recorder import RunRecord

__all__ = [
    "ClockAgreed",
    "DelayMeter",
    "DeviceBack",
    "DeviceLost",
    "Differentiated",
    "Event",
    "Outcome",
    "Read",
    "Record",
    "RunRecord",
    "Source",
    "UnreadableRecord",
    "Updated",
    "Uploaded",
    "load",
    "measure_delays",
]
