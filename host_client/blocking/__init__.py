"""The blocking API: the asynchronous one, run on an event loop in a separate thread.

The loop keeps sessions alive while the caller computes, and the calls may be made from any thread, also from code that
runs an event loop itself.
"""

from host_client.blocking.api import Feed, Session, Spu, Upload, connect

__all__ = ["Feed", "Session", "Spu", "Upload", "connect"]
