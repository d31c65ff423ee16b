"""The training side: connect to an SPU, and train PyTorch models through it.

    from host_client import connect, TNGD

Nothing of the daemon is imported before an ``inproc:`` device is asked for.
"""

from host_client.blocking import Session, Spu, connect
from host_client.optimizers import NGD, TNGD, NGDWoodbury

__all__ = ["NGD", "TNGD", "NGDWoodbury", "Session", "Spu", "connect"]
