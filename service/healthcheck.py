"""Asks the service on this machine whether it serves: python -m service.healthcheck FLAGS...

Takes the flags and the environment of the service that it asks. For containers: exit code 0 where the service answers
SERVING, else 1 with the reason on stderr. It has no certificates for a service with TLS, and asks its HTTP port there.
"""

from __future__ import annotations

import os
import sys
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import settings
from service.settings import address_of

_TIMEOUT_S = 4.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main() -> int:
    configuration = settings.read(sys.argv[1:], os.environ)
    host = _EVERYWHERE.get(configuration.host, configuration.host)
    if configuration.tls_cert:
        return _ask_http(address_of(host, configuration.http_port))
    return _ask_grpc(address_of(host, configuration.port))


def _ask_http(address: str) -> int:
    connection = HTTPConnection(address, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
    except (OSError, HTTPException) as error:
        print(f"{address}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    if answer.status != HTTPStatus.OK:
        print(f"{address}/readyz: {answer.status} {answer.reason}", file=sys.stderr)
    return int(answer.status != HTTPStatus.OK)


def _ask_grpc(address: str) -> int:
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
