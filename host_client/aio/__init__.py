"""The asynchronous API: connect to a device, hold a session, program, advance, read.

    async with await connect("unix:/tmp/spu.sock") as spu, spu.session() as session:
        reading = await session.solve(Rows(a), gradient, analog_time=50.0, damping=0.01)

`host_client.connect` is the same for code without an event loop.
"""

from host_client.aio.session import Session
from host_client.aio.spu import Spu, connect
from host_client.links.lease import Upload

__all__ = ["Session", "Spu", "Upload", "connect"]
