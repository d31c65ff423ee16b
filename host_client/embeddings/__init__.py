"""Devices smaller than the problem: how a system over N parameters is solved with fewer cells.

    with connect("unix:/tmp/spu.sock", embedding="sample") as spu, spu.session() as session:
        reading = session.solve(Rows(a), gradient, analog_time=2000.0, damping=0.01)  # rows of a ≤ cells

`Embedding` objects are pure mathematics; `session` and `upload` put them between a caller and the devices.
"""

from host_client.embeddings.base import Embedded, Embedding, Stage
from host_client.embeddings.block import Block
from host_client.embeddings.exact import solve_exactly
from host_client.embeddings.fitting import embedding_of, fitting
from host_client.embeddings.kronecker import Kronecker
from host_client.embeddings.sample_space import SampleSpace

__all__ = [
    "Block",
    "Embedded",
    "Embedding",
    "Kronecker",
    "SampleSpace",
    "Stage",
    "embedding_of",
    "fitting",
    "solve_exactly",
]
