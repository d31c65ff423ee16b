"""Ask a daemon's standard gRPC health service once: exit code 0 when it serves, 1 when it does not."""

import sys

from spu_link.addresses import channel_options, channel_target  # before gRPC: it turns its log off

# isort: split
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from spu_link.status import from_rpc_error

DEADLINE = 3.0
"""Seconds to wait for the answer."""


def main(address: str) -> int:
    """Exit code for the daemon at `address`, unix:PATH or HOST:PORT."""
    with grpc.insecure_channel(channel_target(address), options=channel_options(address)) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
        except grpc.RpcError as error:
            print(from_rpc_error(error, call="Check", address=address))
            return 1
    print(f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}")
    return int(reply.status != health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
