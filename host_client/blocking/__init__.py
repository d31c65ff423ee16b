"""The blocking API: the asynchronous one, run on an event loop in a thread of its own.

The loop keeps sessions alive while the caller computes, and the calls may be made from any thread, also from code that
runs an event loop itself.
"""

from host_client.blocking.feed import Feed
from host_client.blocking.session import Session
from host_client.blocking.spu import Spu, connect
from host_client.blocking.upload import Upload

__all__ = ["Feed", "Session", "Spu", "Upload", "connect"]
