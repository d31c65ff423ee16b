"""The modules that the fork server imports: all that every driver needs.

They are excluded from garbage collection there, before the first fork: else each process would look through them, for
0.3 s, and copy the memory that they lie in.
"""

from __future__ import annotations

import spu_server.drivers.hosted  # noqa: F401
from spu_link.tuning import settle_process

settle_process()
