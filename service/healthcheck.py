"""Asks the service on this machine whether it serves: python -m service.healthcheck FLAGS...

Takes the flags and the environment of the service that it asks. For containers: exit code 0 where the service answers
SERVING, else 1 with the reason on stderr.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import settings

_TIMEOUT_S = 4.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main() -> int:
    configuration = settings.read(sys.argv[1:], os.environ)
    host = _EVERYWHERE.get(configuration.host, configuration.host)
    address = f"[{host}]:{configuration.port}" if ":" in host else f"{host}:{configuration.port}"
    # A proxy of the environment is for other machines.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            print(f"{address}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if status != "SERVING":
        print(f"{address}: {status}", file=sys.stderr)
    return int(status != "SERVING")


if __name__ == "__main__":
    sys.exit(main())
