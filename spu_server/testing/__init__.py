"""The conformance suite: what every driver must do, run on the real thing.

``spu-server conformance NAME`` runs it, and so does
``pytest -p spu_server.testing.plugin --pyargs spu_server.testing --driver NAME``.
"""
