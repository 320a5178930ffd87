"""The fall-back transport: grpcio's public threaded server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc

from service import connections
from service.admission import Admission
from service.calls import Method, perform
from service.errors import Cancelled, ServiceError
from service.guard import Guard
from service.metrics import Metrics
from service.observation import Observation, Observer
from service.threaded_calls import Call, Stream
from service.threads import no_thread, started_pool
from service.tokens import Grant
from service.transport import GuardInterceptor, Limits, Meter, listen, server_options

_FAREWELL_S = 1.0


class ThreadedTransport:
    """A `transport.Transport`. `threads` handlers run at a time, streams among them; further calls wait for one."""

    work = None

    def __init__(
        self,
        *,
        threads: int,
        limits: Limits,
        metrics: Metrics,
        share_port: bool = False,
        guard: Guard | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._guard = guard
        self._observer = observer or Observer()
        self._own: set[str] = set()
        self._limits = limits
        self._metrics = metrics
        self._port = 0
        self._pool = started_pool(threads, "handler")
        # Where messages are waited for, so that it can be given up: grpcio itself waits for ever.
        self._message_readers = ThreadPoolExecutor(limits.max_concurrent_requests, thread_name_prefix="message-reader")
        self._admission = Admission(limits.max_concurrent_requests)
        metrics.requests_in_flight.set_function(lambda: self._admission.inside)
        self._streams_lock = threading.Lock()
        self._streams: set[Stream] = set()
        self._readers: set[threading.Thread] = set()
        self._draining = False
        self._server = grpc.server(
            self._pool,
            interceptors=[] if guard is None else [GuardInterceptor(guard, own=self._own.__contains__)],
            maximum_concurrent_rpcs=limits.max_concurrent_requests,
            options=server_options(limits, share_port=share_port),
        )

    @property
    def server(self) -> grpc.Server:
        return self._server

    def add_service(self, name: str, methods: Mapping[str, Method[Any]]) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method_name, method in methods.items():
            meter = Meter.of(self._metrics, f"/{name}/{method_name}", method)
            self._own.add(meter.method)
            # The raw bytes come to the behaviours, so that garbage is answered like any other wrong request.
            if method.stream:
                handlers[method_name] = grpc.stream_stream_rpc_method_handler(self._stream(method, meter))
            else:
                handlers[method_name] = grpc.stream_unary_rpc_method_handler(self._unary(method, meter))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        self._port = listen(self._server, address, credentials)
        return self._port

    def start(self) -> None:
        self._server.start()

    def stop(self, grace_s: float) -> None:
        until = time.monotonic() + grace_s
        with self._streams_lock:
            self._draining = True
            streams = tuple(self._streams)
        for stream in streams:
            stream.drain()
        # Calls that came before this wait in the pool's queue before it, so that they run before it.
        with suppress(TimeoutError):
            self._pool.submit(lambda: None).result(grace_s)
        self._admission.refuse()
        self._admission.wait_until_empty(until)
        connections.end(self._port, _FAREWELL_S)
        # Calls that did not end in their time, and streams such as health's Watch, which never end by themselves.
        self._server.stop(_FAREWELL_S).wait()
        for reader in tuple(self._readers):
            reader.join()
        self._pool.shutdown()
        self._message_readers.shutdown()

    def _unary(self, method: Method[Any], meter: Meter) -> Callable[[Iterator[bytes], grpc.ServicerContext], bytes]:
        def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            began = time.monotonic()
            observation = None if method.control else self._observation(meter, context, stream=False)
            try:
                grant = self._grant(meter, context, observation)
                request = self._message(requests)
                if not method.control:
                    self._enter(context)
                call = Call(context, grant, observation)
                perform(method, request, call)
                response = call.result()
            except ServiceError as error:
                context.abort_with_status(meter.failed(error, began, observation))
                raise AssertionError("this is a bug: abort returned") from error
            _succeeded(meter, began, context, observation)
            return response

        return behaviour

    def _stream(
        self, method: Method[Any], meter: Meter
    ) -> Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]:
        def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            began = time.monotonic()
            observation = None if method.control else self._observation(meter, context, stream=True)
            try:
                grant = self._grant(meter, context, observation)
                if not method.control:
                    self._enter(context)
                stream = Stream(method, requests, context, self._limits, grant, observation)
                self._start_reading(stream)
                try:
                    yield from stream.responses()
                finally:
                    with self._streams_lock:
                        self._streams.discard(stream)
                    stream.leave()
            except ServiceError as error:
                context.abort_with_status(meter.failed(error, began, observation))
            except GeneratorExit:
                meter.failed(Cancelled("CANCELLED", "the caller went away"), began, observation)
                raise
            _succeeded(meter, began, context, observation)

        return behaviour

    def _enter(self, context: grpc.ServicerContext) -> None:
        """Until all of the answer has gone out. Raises ServiceError."""
        self._admission.enter()
        if not context.add_callback(self._admission.leave):
            self._admission.leave()

    def _message(self, requests: Iterator[bytes]) -> bytes:
        """Raises ServiceError."""
        try:
            coming = self._message_readers.submit(next, requests, None)
        except RuntimeError:
            raise no_thread() from None
        try:
            request = coming.result(self._limits.receive_timeout_s)
        except TimeoutError:
            raise self._limits.no_message() from None
        except grpc.RpcError:
            request = None
        if request is None:
            raise Cancelled("CANCELLED", "the call ended without a message")
        return request

    def _observation(self, meter: Meter, context: grpc.ServicerContext, *, stream: bool) -> Observation | None:
        if not self._observer.active:
            return None
        return self._observer.begin(meter.method, context.invocation_metadata(), context.peer(), stream=stream)

    def _grant(self, meter: Meter, context: grpc.ServicerContext, observation: Observation | None) -> Grant | None:
        if self._guard is None:
            return None
        grant = self._guard.admit(meter.method, context.invocation_metadata())
        if observation is not None and grant is not None:
            observation.token = grant.name
        return grant

    def _start_reading(self, stream: Stream) -> None:
        """Raises ServiceError."""
        reader = threading.Thread(target=self._read, args=(stream,), name="stream-reader", daemon=True)
        with self._streams_lock:
            self._streams.add(stream)
            self._readers.add(reader)
            if self._draining:
                stream.drain()
        try:
            reader.start()
        except RuntimeError:
            with self._streams_lock:
                self._streams.discard(stream)
                self._readers.discard(reader)
            raise no_thread() from None

    def _read(self, stream: Stream) -> None:
        # It waits for messages until the RPC ends, which may be after the handler has.
        stream.read()
        with self._streams_lock:
            self._readers.discard(threading.current_thread())


def _succeeded(meter: Meter, began: float, context: grpc.ServicerContext, observation: Observation | None) -> None:
    meter.succeeded(began, observation)
    if observation is not None:
        context.set_trailing_metadata(observation.trailing_metadata)
