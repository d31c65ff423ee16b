"""The asynchronous loop: programs to a device in the background, readings back, and what to do without it."""

from host_client.loop.feed import Feed
from host_client.loop.policies import Freshness, NoOlderThan, OnLoss, TooStale
from host_client.loop.sampling import Sampling

__all__ = ["Feed", "Freshness", "NoOlderThan", "OnLoss", "Sampling", "TooStale"]
