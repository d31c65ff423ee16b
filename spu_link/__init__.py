"""Code that host and daemon share: curvature operators, programs, their wire form, and errors."""

import os

# gRPC's core logs to the terminal what is raised as an error anyway. It reads this when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
