"""The training side: connect to an SPU, and train PyTorch models through it.

from host_client import connect, TNGD
"""

from host_client.blocking import Session, Spu, connect

__all__ = ["Session", "Spu", "connect"]
