"""The server that calls come in through: what the two transports have in common.

Handlers are given to a transport as a table of `calls.Method`s; they see a `calls.Call` and do not know which transport
it is. Methods with generated handlers (health's Watch) are added to `server`, an ordinary `grpc.Server`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import grpc

from service import statuses
from service.calls import Method, Work
from service.errors import DeadlineExceeded, ServiceError
from service.guard import Guard
from service.metrics import Metrics
from service.observation import Observation

_KEEPALIVE_TIMEOUT_S = 20.0
# The second, a minute by default, is the one that gRPC goes by.
_KEEPALIVE_TIMEOUTS = ("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`max_message_bytes` bounds a request; `max_stream_requests` those of one stream that are not answered yet. A
    connection is asked to end after `max_connection_age_s`, give or take a tenth, and has `connection_grace_s` for its
    calls; infinity for never. Connections beyond `max_connections` are closed at once; calls beyond
    `max_connection_streams` of one connection wait at the client or are UNAVAILABLE; a call with headers of more than
    `max_header_bytes` is RESOURCE_EXHAUSTED. A unary call has `receive_timeout_s` for its message to come, and is
    DEADLINE_EXCEEDED after that. A connection that is silent for `keepalive_s` is asked whether anybody is
    there, and ended where nobody answers."""

    max_concurrent_requests: int
    max_message_bytes: int
    max_stream_requests: int
    max_connection_age_s: float = math.inf
    connection_grace_s: float = math.inf
    max_connections: int = 4096
    max_connection_streams: int = 4096
    max_header_bytes: int = 16384
    keepalive_s: float = 60.0
    receive_timeout_s: float = 60.0

    def no_message(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            "MESSAGE_TIMEOUT",
            f"the request message did not come in --receive-timeout-s={self.receive_timeout_s:g} s; nothing was run",
        )


class GuardInterceptor(grpc.ServerInterceptor):
    """Asks the guard for services with generated handlers; the others, `own`, ask it themselves."""

    def __init__(self, guard: Guard, own: Callable[[str], bool]) -> None:
        self._guard = guard
        self._own = own

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        if not self._own(details.method):
            try:
                self._guard.admit(details.method, details.invocation_metadata)
            except ServiceError as error:
                status = statuses.of(error)
                # Of all kinds of handlers the one that waits for no message.
                return grpc.stream_stream_rpc_method_handler(
                    lambda requests, context: context.abort_with_status(status)
                )
        return continuation(details)


class Transport(Protocol):
    @property
    def server(self) -> grpc.Server: ...

    @property
    def work(self) -> Work | None:
        """The thread that the handlers are called in, where it can run short work itself; None where it cannot."""

    def add_service(self, name: str, methods: Mapping[str, Method[Any]]) -> None:
        """Serve the methods of a service, by their short names. Before `start`."""

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on `address`; returns the port. Raises OSError where it is taken."""

    def start(self) -> None: ...

    def stop(self, grace_s: float) -> None:
        """Finish the calls that have come, refuse new ones, and after `grace_s` at most cancel what is left."""


class Meter:
    """The metrics of one method."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self._duration = metrics.rpc_duration.labels(method)
        self._ok = metrics.rpc_requests.labels(method, "OK")
        self._requests = metrics.rpc_requests
        self._rejected = metrics.rejected_requests
        self.method = method

    @classmethod
    def of(cls, metrics: Metrics, name: str, method: Method[Any]) -> Meter:
        return _Uncounted(name) if method.control else cls(metrics, name)

    def succeeded(self, began: float, observation: Observation | None) -> None:
        duration_s = time.monotonic() - began
        self._duration.observe(duration_s)
        self._ok.inc()
        if observation is not None:
            observation.end("OK", duration_s)

    def failed(self, error: ServiceError, began: float, observation: Observation | None) -> statuses.Status:
        """Returns the status to answer with."""
        status = statuses.of(error)
        duration_s = time.monotonic() - began
        self._duration.observe(duration_s)
        self._requests.labels(self.method, status.code.name).inc()
        self._rejected.labels(error.reason).inc()
        if observation is None:
            return status
        observation.end(status.code.name, duration_s, error.reason)
        return replace(status, trailing_metadata=(*status.trailing_metadata, *observation.trailing_metadata))


class _Uncounted(Meter):
    def __init__(self, method: str) -> None:
        self.method = method

    def succeeded(self, began: float, observation: Observation | None) -> None:
        pass

    def failed(self, error: ServiceError, began: float, observation: Observation | None) -> statuses.Status:
        return statuses.of(error)


def server_options(limits: Limits, *, share_port: bool) -> list[tuple[str, int]]:
    ages = {
        "grpc.max_connection_age_ms": limits.max_connection_age_s,
        "grpc.max_connection_age_grace_ms": limits.connection_grace_s,
    }
    return [
        *((name, int(seconds * 1000)) for name, seconds in ages.items() if math.isfinite(seconds)),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_concurrent_streams", limits.max_connection_streams),
        # The first is where gRPC begins to refuse some calls by chance.
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_header_bytes),
        ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
        *((name, int(min(limits.keepalive_s, _KEEPALIVE_TIMEOUT_S) * 1000)) for name in _KEEPALIVE_TIMEOUTS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Without this two servers share a port without a word.
        ("grpc.so_reuseport", int(share_port)),
    ]


def listen(server: grpc.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Raises OSError where the address is taken."""
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
