"""The fall-back transport: grpcio's public threaded server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import grpc
from google.protobuf.message import Message

from service import connections
from service.admission import Admission
from service.calls import Method, perform
from service.errors import Cancelled, ServiceError, Unavailable, internal_error
from service.guard import Guard
from service.metrics import Metrics
from service.observation import Observation, Observer
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
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="handler")
        # Where messages are waited for, so that it can be given up: grpcio itself waits for ever.
        self._message_readers = ThreadPoolExecutor(limits.max_concurrent_requests, thread_name_prefix="message-reader")
        self._admission = Admission(limits.max_concurrent_requests)
        metrics.requests_in_flight.set_function(lambda: self._admission.inside)
        self._streams_lock = threading.Lock()
        self._streams: set[_Stream] = set()
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
            meter = Meter(self._metrics, f"/{name}/{method_name}")
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
            observation = self._observation(meter, context, stream=False)
            try:
                grant = self._grant(meter, context, observation)
                request = self._message(requests)
                self._enter(context)
                call = _Call(context, grant, observation)
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
            observation = self._observation(meter, context, stream=True)
            try:
                grant = self._grant(meter, context, observation)
                self._enter(context)
                stream = _Stream(method, requests, context, self._limits, grant, observation)
                reader = threading.Thread(target=self._read, args=(stream,), name="stream-reader", daemon=True)
                with self._streams_lock:
                    self._streams.add(stream)
                    self._readers.add(reader)
                    if self._draining:
                        stream.drain()
                reader.start()
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
            request = self._message_readers.submit(next, requests, None).result(self._limits.receive_timeout_s)
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

    def _read(self, stream: _Stream) -> None:
        # It waits for messages until the RPC ends, which may be after the handler has.
        stream.read()
        with self._streams_lock:
            self._readers.discard(threading.current_thread())


def _succeeded(meter: Meter, began: float, context: grpc.ServicerContext, observation: Observation | None) -> None:
    meter.succeeded(began, observation)
    if observation is not None:
        context.set_trailing_metadata(observation.trailing_metadata)


def _deadline(context: grpc.ServicerContext) -> float:
    remaining_s = context.time_remaining()
    return float("inf") if remaining_s is None else time.monotonic() + remaining_s


def _serialise(build: Callable[[], Message]) -> bytes:
    """Raises ServiceError."""
    try:
        return build().SerializeToString()
    except ServiceError:
        raise
    except Exception as error:
        raise internal_error("an answer could not be built") from error


class _Call:
    """A `calls.Call` whose handler thread waits for the answer."""

    def __init__(self, context: grpc.ServicerContext, grant: Grant | None, observation: Observation | None) -> None:
        self._context = context
        self.grant = grant
        self.observation = observation
        self.caller = context.peer()
        self.deadline = _deadline(context)
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

    def result(self) -> bytes:
        """Raises ServiceError."""
        self._answered.acquire()
        if isinstance(self._outcome, ServiceError):
            raise self._outcome
        assert self._outcome is not None
        return _serialise(self._outcome)


# What a stream's sender is told beside answers.
_HALF_CLOSED, _GONE, _DRAIN = object(), object(), object()


class _Stream:
    """A bidirectional stream: a thread reads and hands on the messages, the handler's own thread sends the answers.

    The next message is read only while few enough are unanswered or wait to be sent, by number and by bytes.
    """

    def __init__(
        self,
        method: Method[Any],
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
        limits: Limits,
        grant: Grant | None,
        observation: Observation | None,
    ) -> None:
        self.grant = grant
        self.observation = observation
        self._method = method
        self._requests = requests
        self._context = context
        self._limits = limits
        self.caller = context.peer()
        self.deadline = _deadline(context)
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._room = threading.Condition()
        # Accepted, not sent yet, in the order in which they came; with the answers that wait for others before them.
        self._calls: dict[_StreamCall, Callable[[], Message] | None] = {}
        self._bytes = 0
        self._closed = False
        self._draining = False
        if not context.add_callback(self.leave):
            self.leave()

    def drain(self) -> None:
        self._draining = True
        self._outbox.put(_DRAIN)

    def responses(self) -> Iterator[bytes]:
        """The answers as they come, until all are given. Raises ServiceError where the stream is to end with one."""
        half_closed = False
        while True:
            if half_closed and not self._calls:
                return
            if self._draining and not self._calls:
                raise Unavailable("DRAINING", "the service is stopping; open the stream elsewhere")
            what = self._outbox.get()
            if what is _GONE:
                raise Cancelled("CANCELLED", "the caller went away")
            if what is _HALF_CLOSED:
                half_closed = True
            elif isinstance(what, ServiceError):
                raise what
            elif what is not _DRAIN:
                for call, build in self._sendable(*what):
                    response = _serialise(build)
                    yield response
                    self._finish(call)

    def _sendable(
        self, call: _StreamCall, build: Callable[[], Message]
    ) -> Iterator[tuple[_StreamCall, Callable[[], Message]]]:
        """What may be sent, now that `call` is answered; each is finished before the next is asked for."""
        if not self._method.ordered:
            yield call, build
            return
        with self._room:
            self._calls[call] = build
        while True:
            with self._room:
                first = next(iter(self._calls.items()), None)
            if first is None or first[1] is None:
                return
            yield first[0], first[1]

    def leave(self) -> None:
        """Read no more; what is not answered yet is for nobody."""
        with self._room:
            self._closed = True
            calls = tuple(self._calls)
            self._room.notify()
        for call in calls:
            call.cancel()
        self._outbox.put(_GONE)

    def put(self, what: Any) -> None:
        self._outbox.put(what)

    def read(self) -> None:
        """Hand on the messages until there are no more."""
        try:
            while self._wait_for_room():
                request = next(self._requests, None)
                if request is None:
                    break
                call = _StreamCall(self, len(request))
                with self._room:
                    if self._closed or self._draining:
                        break
                    self._calls[call] = None
                    self._bytes += call.bytes
                perform(self._method, request, call)
        except grpc.RpcError:
            pass  # the caller is gone
        self._outbox.put(_HALF_CLOSED)

    def _wait_for_room(self) -> bool:
        limits = self._limits
        with self._room:
            self._room.wait_for(
                lambda: (
                    self._closed
                    or (len(self._calls) < limits.max_stream_requests and self._bytes < limits.max_message_bytes)
                )
            )
            return not (self._closed or self._draining)

    def _finish(self, call: _StreamCall) -> None:
        with self._room:
            self._calls.pop(call, None)
            self._bytes -= call.bytes
            self._room.notify()


class _StreamCall:
    """A `calls.Call` for one message of a stream."""

    def __init__(self, stream: _Stream, request_bytes: int) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._cancelled = False
        self.bytes = request_bytes
        self.caller = stream.caller
        self.grant = stream.grant
        self.observation = stream.observation
        self.deadline = stream.deadline

    def on_cancel(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if not self._cancelled:
                self._callbacks.append(callback)
                return
        callback()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def answer(self, build: Callable[[], Message]) -> None:
        self._forget()
        self._stream.put((self, build))

    def fail(self, error: ServiceError) -> None:
        self._forget()
        self._stream.put(error)

    def _forget(self) -> None:
        # They lead back to this call, and its rows would stay until the collector of cycles comes by.
        with self._lock:
            self._callbacks = []
