"""The two services that tell of the service itself, health and reflection, as methods of a transport.

grpcio's own handlers for them wait for messages in threads of a small pool: callers that send none would hold up the
health checks of all. Here the transport waits, as it does for every other method.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.calls import Call, Method
from service.errors import NotFound
from service.transport import Transport

REFLECTION = reflection.SERVICE_NAME


def add_health(transport: Transport, servicer: health.HealthServicer) -> None:
    """Serve grpc.health.v1.Health. Watch stays grpcio's, which keeps no thread for one whose message has come."""

    def check(request: health_pb2.HealthCheckRequest, call: Call) -> None:
        context = _Context()
        answer = servicer.Check(request, cast(grpc.ServicerContext, context))
        if context.code is grpc.StatusCode.NOT_FOUND:
            raise NotFound("NO_SUCH_SERVICE", f"service: health knows none called {request.service[:64]!r}")
        call.answer(lambda: answer)

    parse = health_pb2.HealthCheckRequest.FromString
    transport.add_service(health.SERVICE_NAME, {"Check": Method(parse=parse, handle=check, control=True)})
    watch = grpc.unary_stream_rpc_method_handler(
        servicer.Watch, parse, health_pb2.HealthCheckResponse.SerializeToString
    )
    handler = grpc.method_handlers_generic_handler(health.SERVICE_NAME, {"Watch": watch})
    transport.server.add_generic_rpc_handlers((handler,))


def add_reflection(transport: Transport, services: Iterable[str], pool: DescriptorPool | None = None) -> None:
    """Serve grpc.reflection.v1alpha.ServerReflection for these services and itself, whose descriptions are in `pool`,
    by default protobuf's own."""
    nobody: Any = None  # the context, of which grpcio's handler makes no use
    servicer = reflection.ReflectionServicer((*services, REFLECTION), pool=pool)

    def describe(request: reflection_pb2.ServerReflectionRequest, call: Call) -> None:
        (answer,) = servicer.ServerReflectionInfo(iter((request,)), nobody)
        call.answer(lambda: answer)

    method: Method[Any] = Method(
        parse=reflection_pb2.ServerReflectionRequest.FromString,
        handle=describe,
        stream=True,
        ordered=True,
        control=True,
    )
    transport.add_service(REFLECTION, {"ServerReflectionInfo": method})


class _Context:
    """What grpcio's Check uses of the context of a call."""

    code: grpc.StatusCode | None = None

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code
