"""The fast transport: one thread on grpcio's completion queue, without hand-offs between threads.

The thread takes what is ready from the queue: a new call asks for its message, a message is read and admitted. When
nothing more is ready, the rows that came are a batch; it is run in the same thread, and each answer goes out in one
operation. Other threads may answer too: they leave the answer for this thread and wake it.

It stands on layers of grpcio that are not public, the same in a range of versions; `why_not` tries them. Methods given
to `add_service` take this path. All others (health, reflection, anything with generated handlers) go untouched through
grpcio's own code, on a small pool of threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MethodType
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int64Value
from grpc import _common, _server
from grpc._cython import cygrpc
from prometheus_client import CollectorRegistry

from service import grpc_core
from service.admission import Admission
from service.calls import Method, perform
from service.errors import Cancelled, ServiceError, Unavailable, internal_error
from service.guard import Guard
from service.metrics import Metrics
from service.observation import Observation, Observer
from service.tokens import Grant
from service.transport import GuardInterceptor, Limits, Meter, listen, server_options

log = logging.getLogger(__name__)

_POLL_S = 0.1
# A call that lives so long wants to know when its caller goes away; shorter ones do not pay for it.
_LONG_CALL_S = 0.25
# Scheduled work is done after so many events even if there are more.
_MAX_EVENTS = 512
# One poll reads from one connection at most, and what it finds there need not be a request; others may have some.
_EMPTY_POLLS = 2
_FAREWELL_S = 1.0
_SELF_TEST_S = 10.0
_SLOW_LANE_THREADS = 16
_WAKE = "wake"

_OK = cygrpc.StatusCode.ok
_BUFFER_HINT = cygrpc.WriteFlag.buffer_hint
_STARTED = _server._ServerStage.STARTED
_TAG = MethodType
Event = Any


class CompletionQueueTransport:
    """A `transport.Transport`."""

    def __init__(
        self,
        *,
        limits: Limits,
        metrics: Metrics,
        share_port: bool = False,
        guard: Guard | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._admission = Admission(limits.max_concurrent_requests)
        metrics.requests_in_flight.set_function(lambda: self._admission.inside)
        self._pool = ThreadPoolExecutor(_SLOW_LANE_THREADS, thread_name_prefix="handler")
        self._loop = _Loop(
            self._pool,
            self._admission,
            server_options(limits, share_port=share_port),
            limits,
            guard,
            observer or Observer(),
        )

    @property
    def server(self) -> grpc.Server:
        return self._loop

    @property
    def work(self) -> _Loop:
        return self._loop

    def add_service(self, name: str, methods: Mapping[str, Method[Any]]) -> None:
        for method_name, method in methods.items():
            full_name = f"/{name}/{method_name}"
            self._loop.add_method(full_name, method, Meter(self._metrics, full_name))

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        return listen(self._loop, address, credentials)

    def start(self) -> None:
        self._loop.start()

    def stop(self, grace_s: float) -> None:
        until = time.monotonic() + grace_s
        self._admission.refuse()
        self._loop.drain()
        self._admission.wait_until_empty(until)
        # Answers that are on their way out, and streams such as health's Watch, which never end by themselves.
        self._loop.stop(_FAREWELL_S).wait()
        self._loop.join()
        self._pool.shutdown()


def why_not() -> str | None:
    """Why this transport cannot be used with the grpcio that is installed; None where calls and streams get through."""
    if not grpc_core.is_known():
        return f"grpcio {grpc.__version__} is not one whose private layers are known ({grpc_core.KNOWN})"
    try:
        _try()
    except Exception as error:  # whatever a changed private layer may raise
        return f"its self-test on grpcio {grpc.__version__} failed: {error!r}"
    return None


def _try() -> None:
    """A unary call, an error and a stream, over loopback."""

    def echo(request: Int64Value, call: Any) -> None:
        if request.value < 0:
            raise Cancelled("SELF_TEST", "wanted")
        call.answer(lambda: request)

    limits = Limits(max_concurrent_requests=8, max_message_bytes=1024, max_stream_requests=2)
    transport = CompletionQueueTransport(limits=limits, metrics=Metrics(CollectorRegistry()))
    methods = {
        name: Method(parse=Int64Value.FromString, handle=echo, stream=name == "Stream") for name in ("Unary", "Stream")
    }
    transport.add_service("hourglass.SelfTest", methods)
    port = transport.bind("127.0.0.1:0")
    transport.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
            serialisers = Int64Value.SerializeToString, Int64Value.FromString
            unary = channel.unary_unary("/hourglass.SelfTest/Unary", *serialisers)
            stream = channel.stream_stream("/hourglass.SelfTest/Stream", *serialisers)
            numbers = [Int64Value(value=value) for value in range(5)]
            if unary(numbers[3], timeout=_SELF_TEST_S) != numbers[3]:
                raise ValueError("a call came back changed")
            try:
                unary(Int64Value(value=-1), timeout=_SELF_TEST_S)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.CANCELLED:
                    raise
            else:
                raise ValueError("an error came back as an answer")
            if list(stream(iter(numbers), timeout=_SELF_TEST_S)) != numbers:
                raise ValueError("a stream came back changed")
    finally:
        transport.stop(_SELF_TEST_S)


class _Loop(_server._Server):  # type: ignore[misc]
    """grpcio's server with a loop of its own, and methods that the loop serves itself."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        admission: Admission,
        options: list[tuple[str, int]],
        limits: Limits,
        guard: Guard | None,
        observer: Observer,
    ) -> None:
        # The methods that the loop serves itself never come to the interceptor.
        interceptors = () if guard is None else (GuardInterceptor(guard, own=lambda method: False),)
        super().__init__(pool, (), interceptors, options, limits.max_concurrent_requests, None, False)
        self.guard = guard
        self.observer = observer
        self.admission = admission
        self.limits = limits
        self.streams: set[_Stream] = set()
        # Calls that do not listen for their caller's leaving yet, the oldest first.
        self.unwatched: dict[_Call, None] = {}
        self.draining = False
        self._methods: dict[str, tuple[Method[Any], Meter]] = {}
        self._work: deque[Callable[[], bool]] = deque()
        self._idle_work: deque[Callable[[], object]] = deque()
        self._posted: deque[Callable[[], None]] = deque()
        self._woken = False
        self._ident = 0
        self._thread = threading.Thread(target=self._run, name="completion-queue", daemon=True)

    def add_method(self, full_name: str, method: Method[Any], meter: Meter) -> None:
        self._cy_server.register_method(full_name)
        self._methods[full_name] = method, meter

    def start(self) -> None:
        state = self._state
        with state.lock:
            state.server.start()
            state.stage = _STARTED
            for name in (*self._methods, *state.registered_method_handlers):
                _server._request_registered_call(state, name)
            _server._request_call(state)
        self._thread.start()

    def drain(self) -> None:
        """End the streams when what they brought is answered. From any thread, once started."""
        self.draining = True

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def schedule(self, step: Callable[[], bool]) -> None:
        self._work.append(step)

    def schedule_idle(self, step: Callable[[], object]) -> None:
        self._idle_work.append(step)

    @property
    def is_here(self) -> bool:
        return threading.get_ident() == self._ident

    def post(self, call: Any, action: Callable[[], None]) -> None:
        """Have `action` done by the loop. From any thread; `call`, which must not have been answered yet, carries the
        wake-up: an empty batch of operations on it is ready at once."""
        self._posted.append(action)
        with self._state.lock:
            if self._woken:
                return
            self._woken = True
            self._state.due.add(_WAKE)
        call.start_server_batch((), self._wake)

    def _wake(self, event: Event) -> None:
        with self._state.lock:
            self._state.due.remove(_WAKE)
            self._woken = False
        while self._posted:
            try:
                self._posted.popleft()()
            except Exception:  # the others must not wait for the next that is posted
                log.exception("this is a bug: what was posted failed")

    def _run(self) -> None:
        state, poll, methods = self._state, self._state.completion_queue.poll, self._methods
        work, idle_work = self._work, self._idle_work
        self._ident = threading.get_ident()
        events = empty_polls = 0
        watch_at = 0.0
        going_on = True
        while going_on:
            event = poll(0.0 if work or idle_work else time.time() + _POLL_S)
            tag = event.tag
            try:
                if type(tag) is _TAG:
                    tag(event)
                elif tag in methods:
                    self._begin(tag, event)
                elif tag is not None:
                    going_on = _server._process_event_and_continue(state, event)
                events += 1
                empty_polls = empty_polls + 1 if tag is None else 0
                # Nothing is ready: this is the batch.
                if work and (empty_polls >= _EMPTY_POLLS or events >= _MAX_EVENTS):
                    events = empty_polls = 0
                    step = work.popleft()
                    if step():
                        work.append(step)
                elif idle_work and empty_polls >= _EMPTY_POLLS:
                    events = empty_polls = 0
                    idle_work.popleft()()
            except Exception:
                log.exception("this is a bug: an event failed")
            # A call that is kept alive here keeps grpcio from ending it.
            event = tag = None
            now = time.monotonic()
            if now >= watch_at or self.draining:
                watch_at = now + _LONG_CALL_S
                self._watch(now)
            if state.stage is not _STARTED and going_on:
                with state.lock:
                    going_on = not _server._stop_serving(state)

    def _begin(self, name: str, event: Event) -> None:
        state = self._state
        with state.lock:
            state.due.remove(name)
            if state.stage is _STARTED:
                _server._request_registered_call(state, name)
        if not event.success:
            return
        method, meter = self._methods[name]
        (_Stream if method.stream else _Call)(self, method, meter, event).begin()

    def _watch(self, now: float) -> None:
        """Let calls that have been here for long listen for their caller's leaving; at a stop, all."""
        while self.unwatched:
            call = next(iter(self.unwatched))
            if now - call.began < _LONG_CALL_S and not self.draining:
                break
            call.watch()
        if self.draining:
            for stream in tuple(self.streams):
                stream.drain()


class _Rpc:
    """What the loop knows of one RPC. Touched by the loop alone.

    It stays in the server's `rpc_states`, which a stop waits for, until it was answered and no operation is under way.
    """

    __slots__ = (
        "_admitted", "_answered", "_call", "_cancelled", "_loop", "_metadata", "_meter", "_method", "_pending", "began",
        "caller", "deadline", "grant", "observation",
    )  # fmt: skip

    def __init__(self, loop: _Loop, method: Method[Any], meter: Meter, event: Event) -> None:
        self._loop = loop
        self._method = method
        self._meter = meter
        self._call = event.call
        self._pending = 0
        self._answered = False
        self._cancelled = False
        self._admitted = False
        self._metadata = () if loop.guard is None else event.invocation_metadata
        self.grant: Grant | None = None
        self.began = time.monotonic()
        self.caller: str = event.call.peer().decode()
        self.deadline: float = self.began + (event.call_details.deadline - time.time())
        self.observation: Observation | None = None
        if loop.observer.active:
            self.observation = loop.observer.begin(
                meter.method, event.invocation_metadata, self.caller, stream=method.stream
            )
        loop._state.rpc_states.add(self)

    def _start(self, operations: tuple[Any, ...], tag: Callable[[Event], None]) -> bool:
        """Start operations, of whose end the loop tells `tag`. False where they cannot be: then no event comes."""
        if self._call.start_server_batch(operations, tag) != cygrpc.CallError.ok:
            return False
        self._pending += 1
        return True

    def _enter(self) -> bool:
        """Whether the RPC is let in; else it is answered."""
        try:
            if self._loop.guard is not None:
                self.grant = self._loop.guard.admit(self._meter.method, self._metadata)
                if self.observation is not None and self.grant is not None:
                    self.observation.token = self.grant.name
            self._loop.admission.enter()
        except ServiceError as error:
            self._end_with(error)
            return False
        self._admitted = True
        return True

    def _end_with(self, error: ServiceError) -> None:
        raise NotImplementedError

    def _succeeded(self) -> Any:
        """Counts the RPC; the operation that ends it."""
        observation = self.observation
        self._meter.succeeded(self.began, observation)
        trailing_metadata = None if observation is None else observation.trailing_metadata
        return cygrpc.SendStatusFromServerOperation(trailing_metadata, _OK, b"", 0)

    def _failed(self, error: ServiceError) -> Any:
        """As `_succeeded`."""
        status = self._meter.failed(error, self.began, self.observation)
        code = _common.STATUS_CODE_TO_CYGRPC_STATUS_CODE[status.code]
        return cygrpc.SendStatusFromServerOperation(status.trailing_metadata, code, status.details.encode(), 0)

    def _retire(self) -> None:
        states = self._loop._state.rpc_states
        if self._pending or not self._answered or self not in states:
            return
        with self._loop._state.lock:
            states.discard(self)
        if self._admitted:
            self._loop.admission.leave()


class _Call(_Rpc):
    """A unary call; a `calls.Call`."""

    __slots__ = ("_callbacks",)

    def begin(self) -> None:
        self._callbacks: list[Callable[[], None]] = []
        if not self._enter():
            return
        self._loop.unwatched[self] = None
        if not self._start((cygrpc.ReceiveMessageOperation(0),), self._on_message):
            self._end_with(internal_error("grpc took no operation"))

    def on_cancel(self, callback: Callable[[], None]) -> None:
        if self._cancelled:
            callback()
        else:
            self._callbacks.append(callback)

    def answer(self, build: Callable[[], Message]) -> None:
        if self._loop.is_here:
            self._answer(build)
        else:
            self._loop.post(self._call, lambda: self._answer(build))

    def fail(self, error: ServiceError) -> None:
        if self._loop.is_here:
            self._end_with(error)
        else:
            self._loop.post(self._call, lambda: self._end_with(error))

    def watch(self) -> None:
        self._loop.unwatched.pop(self, None)
        self._start((cygrpc.ReceiveCloseOnServerOperation(0),), self._on_close)

    def _on_message(self, event: Event) -> None:
        self._pending -= 1
        request = event.batch_operations[0].message()
        if request is None:
            # Also what a caller that is gone already looks like.
            self._end_with(Cancelled("CANCELLED", "the call ended without a message"))
        else:
            perform(self._method, request, self)

    def _on_close(self, event: Event) -> None:
        self._pending -= 1
        if event.batch_operations[0].cancelled():
            self._cancelled = True
            for callback in tuple(self._callbacks):
                callback()
        self._retire()

    def _answer(self, build: Callable[[], Message]) -> None:
        try:
            message = build().SerializeToString()
        except ServiceError as error:
            self._end_with(error)
            return
        except Exception:
            self._end_with(internal_error("an answer could not be built"))
            return
        self._send(
            cygrpc.SendInitialMetadataOperation(None, 0), cygrpc.SendMessageOperation(message, 0), self._succeeded()
        )

    def _end_with(self, error: ServiceError) -> None:
        self._send(cygrpc.SendInitialMetadataOperation(None, 0), self._failed(error))

    def _send(self, *operations: Any) -> None:
        if self._answered:
            log.error("this is a bug: a call was answered twice")
            return
        self._answered = True
        self._loop.unwatched.pop(self, None)
        # They lead back to this call, and its rows would stay until the collector of cycles comes by.
        self._callbacks.clear()
        if not self._start(operations, self._on_sent):
            self._retire()

    def _on_sent(self, event: Event) -> None:
        self._pending -= 1
        self._retire()


class _Stream(_Rpc):
    """A bidirectional stream, each of whose messages is a call of its own.

    The next message is asked for only while few enough are unanswered or wait to be sent, by number and by bytes;
    HTTP/2 then holds back a client that sends more, or that does not read.
    """

    __slots__ = ("_bytes", "_calls", "_half_closed", "_outbox", "_receiving", "_sending")

    def begin(self) -> None:
        # Not answered yet, in the order in which they came; or answered, and others are to be answered before.
        self._calls: dict[_StreamCall, bytes | None] = {}
        self._outbox: deque[tuple[bytes, int]] = deque()  # answers, and the bytes of what they answer
        self._bytes = 0
        self._half_closed = self._receiving = self._sending = False
        if not self._enter():
            return
        self._loop.streams.add(self)
        self._start((cygrpc.ReceiveCloseOnServerOperation(0),), self._on_close)
        self._start((cygrpc.SendInitialMetadataOperation(None, 0),), self._on_metadata)
        self._receive()

    def drain(self) -> None:
        """Take no more messages; end as unavailable when those that came are answered."""
        self._go_on()

    def _receive(self) -> None:
        limits = self._loop.limits
        if (
            not (self._receiving or self._half_closed or self._answered or self._loop.draining)
            and len(self._calls) + len(self._outbox) < limits.max_stream_requests
            and self._bytes < limits.max_message_bytes
        ):
            self._receiving = self._start((cygrpc.ReceiveMessageOperation(0),), self._on_message)

    def _on_metadata(self, event: Event) -> None:
        self._pending -= 1
        self._retire()

    def _on_message(self, event: Event) -> None:
        self._pending -= 1
        self._receiving = False
        request = event.batch_operations[0].message()
        if request is None:
            self._half_closed = True
        elif not self._answered:
            call = _StreamCall(self, len(request))
            self._calls[call] = None
            self._bytes += len(request)
            perform(self._method, request, call)
        self._go_on()

    def _on_close(self, event: Event) -> None:
        self._pending -= 1
        if event.batch_operations[0].cancelled():
            self._cancelled = True
            self._drop_answers()
            for call in tuple(self._calls):
                call.cancel()
        self._go_on()

    def answered(self, call: _StreamCall, message: bytes) -> None:
        if self._cancelled or self._answered:
            del self._calls[call]
            self._bytes -= call.bytes
        else:
            self._bytes += len(message)
            self._calls[call] = message
            if self._method.ordered:
                self._release_in_order()
            else:
                self._release(call, message)
        self._go_on()

    def _release_in_order(self) -> None:
        while self._calls:
            call, message = next(iter(self._calls.items()))
            if message is None:
                return
            self._release(call, message)

    def _release(self, call: _StreamCall, message: bytes) -> None:
        del self._calls[call]
        self._outbox.append((message, call.bytes + len(message)))

    def _drop_answers(self) -> None:
        self._outbox.clear()
        self._calls = {call: None for call, message in self._calls.items() if message is None}

    def failed(self, call: _StreamCall, error: ServiceError) -> None:
        del self._calls[call]
        if not self._answered:
            self._end_with(error)
        self._go_on()

    def _go_on(self) -> None:
        if self._outbox and not self._sending:
            message, size = self._outbox.popleft()
            self._bytes -= size
            flags = _BUFFER_HINT if self._outbox else 0
            self._sending = self._start((cygrpc.SendMessageOperation(message, flags),), self._on_message_sent)
        if not (self._answered or self._calls or self._outbox or self._sending):
            if self._cancelled:
                # Nobody is left to be told.
                self._answered = True
                self._failed(Cancelled("CANCELLED", "the caller went away"))
            elif self._half_closed:
                self._end(self._succeeded())
            elif self._loop.draining:
                self._end_with(Unavailable("DRAINING", "the service is stopping; open the stream elsewhere"))
        self._receive()
        self._retire()

    def _on_message_sent(self, event: Event) -> None:
        self._pending -= 1
        self._sending = False
        if not event.success:
            self._drop_answers()
        self._go_on()

    def _end_with(self, error: ServiceError) -> None:
        status = self._failed(error)
        self._drop_answers()
        if self._admitted:
            self._end(status)
        else:
            self._end(cygrpc.SendInitialMetadataOperation(None, 0), status)

    def _end(self, *operations: Any) -> None:
        self._answered = True
        if not self._start(operations, self._on_ended):
            self._retire()

    def _on_ended(self, event: Event) -> None:
        self._pending -= 1
        self._retire()

    def _retire(self) -> None:
        if self._answered and not self._calls and not self._pending:
            self._loop.streams.discard(self)
            super()._retire()


class _StreamCall:
    """A `calls.Call` for one message of a stream."""

    __slots__ = ("_callbacks", "_stream", "bytes")

    def __init__(self, stream: _Stream, request_bytes: int) -> None:
        self._stream = stream
        self._callbacks: list[Callable[[], None]] = []
        self.bytes = request_bytes

    @property
    def caller(self) -> str:
        return self._stream.caller

    @property
    def grant(self) -> Grant | None:
        return self._stream.grant

    @property
    def observation(self) -> Observation | None:
        return self._stream.observation

    @property
    def deadline(self) -> float:
        return self._stream.deadline

    def on_cancel(self, callback: Callable[[], None]) -> None:
        if self._stream._cancelled:
            callback()
        else:
            self._callbacks.append(callback)

    def cancel(self) -> None:
        for callback in tuple(self._callbacks):
            callback()

    def answer(self, build: Callable[[], Message]) -> None:
        if self._stream._loop.is_here:
            self._answer(build)
        else:
            self._stream._loop.post(self._stream._call, lambda: self._answer(build))

    def fail(self, error: ServiceError) -> None:
        if self._stream._loop.is_here:
            self._fail(error)
        else:
            self._stream._loop.post(self._stream._call, lambda: self._fail(error))

    def _answer(self, build: Callable[[], Message]) -> None:
        try:
            message = build().SerializeToString()
        except Exception:
            self._fail(internal_error("an answer could not be built"))
            return
        # They lead back to this call, and its rows would stay until the collector of cycles comes by.
        self._callbacks.clear()
        self._stream.answered(self, message)

    def _fail(self, error: ServiceError) -> None:
        self._callbacks.clear()
        self._stream.failed(self, error)
