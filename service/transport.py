"""The server that calls come in through: grpcio's public threaded server.

Handlers are given to it as a table of `Method`s; they see a `calls.Call` and do not know this module. Services with
generated handlers (health, reflection) are added to `server`, which is an ordinary `grpc.Server`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from service import statuses
from service.calls import Method
from service.errors import InvalidArgument, ServiceError, Unavailable, internal_error
from service.metrics import Metrics

_QUIET_S = 0.1
_LINGER_S = 2.0
_FAREWELL_S = 1.0


class ThreadedTransport:
    """`threads` handlers run at a time; further calls wait for one, up to `max_concurrent_requests` in all."""

    def __init__(
        self,
        *,
        threads: int,
        max_concurrent_requests: int,
        max_message_bytes: int,
        metrics: Metrics,
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="handler")
        self._metrics = metrics
        self._changed = threading.Condition()
        self._running = 0
        self._refused = 0
        self._draining = False
        self.server = grpc.server(
            self._pool,
            maximum_concurrent_rpcs=max_concurrent_requests,
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Without this two servers share a port without a word.
                ("grpc.so_reuseport", 0),
            ],
        )

    def add_service(self, name: str, methods: Mapping[str, Method[Any]]) -> None:
        """Serve the methods of a service, by their short names."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            method_name: grpc.unary_unary_rpc_method_handler(self._behaviour(f"/{name}/{method_name}", method))
            for method_name, method in methods.items()
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

    def bind(self, address: str) -> int:
        """Listen on `address`, without TLS; returns the port. Raises OSError where it is taken."""
        try:
            return self.server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error

    def start(self) -> None:
        self.server.start()

    def stop(self, grace_s: float) -> None:
        """Finish the calls that have come, refuse new ones, and after `grace_s` at most cancel what is left."""
        until = time.monotonic() + grace_s
        # Calls that came before this wait in the pool's queue before it, so that they run before it.
        with suppress(TimeoutError):
            self._pool.submit(lambda: None).result(grace_s)
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: self._running == 0, until - time.monotonic())
            # The library cancels calls that have reached it and no handler yet, and their callers cannot tell that they
            # were not run. So refuse them by name for as long as they keep coming, within reason.
            until = time.monotonic() + _LINGER_S
            seen = self._refused
            while self._changed.wait_for(partial(self._has_refused_more, seen), _QUIET_S) and time.monotonic() < until:
                seen = self._refused
        # Answers that are on their way out, and streams such as health's Watch, which never end by themselves.
        self.server.stop(_FAREWELL_S).wait()
        self._pool.shutdown()

    def _has_refused_more(self, than: int) -> bool:
        return self._refused > than

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Count a call as running. Raises Unavailable once the transport drains."""
        with self._changed:
            if self._draining:
                self._refused += 1
                self._changed.notify_all()
                raise Unavailable("DRAINING", "the service is stopping; send the request elsewhere")
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                if self._draining:
                    self._changed.notify_all()

    def _behaviour(self, full_name: str, method: Method[Any]) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        duration = self._metrics.rpc_duration.labels(full_name)
        in_flight = self._metrics.requests_in_flight
        ok = self._metrics.rpc_requests.labels(full_name, "OK")

        # The raw bytes come here, so that garbage is answered like any other wrong request.
        def behaviour(request: bytes, context: grpc.ServicerContext) -> bytes:
            began = time.monotonic()
            in_flight.inc()
            try:
                with self._admitted():
                    response = _answer(method, request, context)
            except ServiceError as error:
                status = statuses.of(error)
                self._metrics.rpc_requests.labels(full_name, status.code.name).inc()
                self._metrics.rejected_requests.labels(error.reason).inc()
                context.abort_with_status(status)
                raise AssertionError("this is a bug: abort returned") from error
            finally:
                duration.observe(time.monotonic() - began)
                in_flight.dec()
            ok.inc()
            return response

        return behaviour


def _answer(method: Method[Any], request: bytes, context: grpc.ServicerContext) -> bytes:
    try:
        try:
            message = method.parse(request)
        except DecodeError as error:
            raise InvalidArgument("BAD_MESSAGE", f"the {len(request)} bytes are not a valid request message") from error
        call = _ThreadedCall(context)
        method.handle(message, call)
        return call.result().SerializeToString()
    except ServiceError:
        raise
    except Exception as error:
        raise internal_error("a handler failed") from error


class _ThreadedCall:
    """A `calls.Call` whose handler thread waits for the answer."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context
        self.caller = context.peer()
        remaining_s = context.time_remaining()
        self.deadline = float("inf") if remaining_s is None else time.monotonic() + remaining_s
        self._outcome: Callable[[], Message] | ServiceError | None = None
        # Released once, by the answer: the cheapest thing a thread can wait for.
        self._answered = threading.Lock()
        self._answered.acquire()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        if not self._context.add_callback(callback):
            callback()

    def answer(self, build: Callable[[], Message]) -> None:
        self._outcome = build
        self._answered.release()

    def fail(self, error: ServiceError) -> None:
        self._outcome = error
        self._answered.release()

    def result(self) -> Message:
        self._answered.acquire()
        if isinstance(self._outcome, ServiceError):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome()
