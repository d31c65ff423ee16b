"""Ask a daemon's standard gRPC health service once: exit code 0 when it serves, 1 when it does not."""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

DEADLINE = 3.0
"""Seconds to wait for the answer."""


def main(address: str) -> int:
    """Exit code for the daemon at `address`, host:port."""
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
        except grpc.RpcError as error:
            print(f"{address}: {error.code().name}")
            return 1
    print(f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}")
    return int(reply.status != health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
