"""The asynchronous loop: programs to a device in the background, readings back, and what to do without it."""

from host_client.loop.policies import Freshness, NoOlderThan, OnLoss, TooStale
from host_client.loop.schedule import Schedule

__all__ = ["Freshness", "NoOlderThan", "OnLoss", "Schedule", "TooStale"]
